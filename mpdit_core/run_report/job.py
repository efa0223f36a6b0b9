"""`mpdit report RUN`: one HTML page about a run that needs nothing else: curves, previews, evaluations, configuration.

Pictures are inside it (SVG, and the PNGs as base64), so that it opens offline and can be sent by mail. The page itself
is page.html.j2; here are the values it shows.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mpdit_core import __version__
from mpdit_core.config import RunConfig
from mpdit_core.data.images import open_image, to_rgb
from mpdit_core.errors import UserError
from mpdit_core.evaluation import EvaluationRecord, read_records
from mpdit_core.model.compute import count
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.reporting import Reporter, Saved, Warning, silent
from mpdit_core.run_report.curves import curve
from mpdit_core.run_report.history import MEAN_STEPS, History, read_history
from mpdit_core.run_report.options import ReportOptions, ReportResult
from mpdit_core.runtime import files
from mpdit_core.settings import flatten, to_toml

TEMPLATE = Path(__file__).with_name("page.html.j2")
CURVES = {
    "loss": "loss", "grad_norm": "gradient norm", "learning_rate": "learning rate",
    "images_per_second": "images/s", "mfu": "model-FLOP utilisation",
}  # fmt: skip
MOST_FRAMES, FRAME_WIDTH = 12, 480
STEP = re.compile(r"step-([0-9]{1,15})\.png")  # names of previews


def write_report(options: ReportOptions, *, report: Reporter = silent) -> ReportResult:
    """Writes the page to `options.out`, by default `RUN/report.html`.

    Raises:
        UserError: there is no run (`not-a-run`), or it has not logged a step yet (`no-steps`).
    """
    run = RunFolder(options.run)
    config, history = run.config(), read_history(run.metrics())
    if not history.last:
        raise UserError(
            f"{options.run} has logged no step yet",
            code="no-steps",
            expected="lines in metrics.jsonl",
            remedy=f"mpdit train --run {options.run}",
        )
    facts, records = facts_of(config, history), read_records(run.evals, report=report)
    page = _environment().get_template(TEMPLATE.name)
    text = page.render(
        title=options.run.resolve().name,
        facts=facts,
        curves=_curves(history),
        frames=_frames(run, report),
        evaluations=[_evaluation(record) for record in records],
        config=to_toml(config),
        version=__version__,
    )
    path = options.out or options.run / "report.html"
    files.write_text(path, text)
    report(Saved(what="report", path=path))
    return ReportResult(report=path, facts=facts, evaluations=len(records))


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def facts_of(config: RunConfig, history: History) -> dict[str, str]:
    """The run in words: its model, how far it is, what it took."""
    last, counted = history.last, count(config.model)
    spent = 2 * counted.training_macs * last["images_seen"]
    loss = "not finite" if last["loss"] is None else f"{last['loss']:.4f}"
    seconds = history.seconds
    return {
        "preset": config.preset,
        "parameters": f"{counted.parameters:,}",
        "forward pass": f"{counted.macs / 1e9:.3g} GMACs per image",
        "steps": f"{last['step']:,}",
        "images seen": f"{last['images_seen']:,}",
        "loss": f"{loss}, mean of the last {MEAN_STEPS} steps {history.recent_loss():.4f}",
        "time in steps": f"{seconds / 3600:.2f} h" if seconds > 3600 else f"{seconds / 60:.1f} min",
        "compute spent": f"{spent:.3g} FLOPs ({spent / 1e15 / 86400:.3g} PFLOP/s-days), by formula",
    }


def _curves(history: History) -> list[dict[str, Any]]:
    """Title and SVG of each quantity that was logged at least twice: those of steps, then those of evaluations."""
    titles = {key: title for key, title in CURVES.items() if key in history.series}
    for key in sorted(key for key in history.series if key.startswith("eval/")):
        titles[key] = f"{key.removeprefix('eval/').replace('_', ' ')}, measured in the run"
    drawn = {key: history.series[key].points for key in titles if len(history.series[key].points) > 1}
    return [{"title": titles[key], "svg": curve(points, smooth=key == "loss")} for key, points in drawn.items()]


def chosen_frames(frames: list[Path]) -> list[Path]:
    """At most `MOST_FRAMES` of the previews, evenly spaced, the first and the last among them."""
    number = min(len(frames), MOST_FRAMES)
    return [frames[round(i * (len(frames) - 1) / max(1, number - 1))] for i in range(number)]


def _frames(run: RunFolder, report: Reporter) -> list[dict[str, Any]]:
    """The chosen previews; damaged ones are left out, and reported."""
    frames = []
    for path in chosen_frames([path for path in run.previews() if STEP.fullmatch(path.name)]):
        try:
            frames.append(_frame(path))
        except UserError as error:
            report(Warning(code="damaged-preview", text=f"left out: {path} cannot be read: {error.what}"))
    return frames


def _frame(path: Path) -> dict[str, Any]:
    """Step and PNG in base64. Raises `FaultyImageError`, or `UserError` for what is no regular file."""
    if not path.is_file():
        raise UserError("it is no regular file", code="cannot-read")
    picture = to_rgb(open_image(path.read_bytes()))
    if picture.width > FRAME_WIDTH:
        height = max(1, round(picture.height * FRAME_WIDTH / picture.width))
        picture = picture.resize((FRAME_WIDTH, height))
    memory = io.BytesIO()
    picture.save(memory, format="PNG")
    return {"step": int(path.stem.removeprefix("step-")), "png": base64.b64encode(memory.getvalue()).decode()}


def _evaluation(record: EvaluationRecord) -> dict[str, Any]:
    """Title, figures and protocol of an evaluation."""
    values = record.model_dump(mode="json")
    figures = values.pop("metrics")
    step = (values.get("model") or {}).get("step")
    return {
        "title": record.path.stem if step is None else f"step {step:,}: {record.path.stem}",
        "figures": {key: f"{value:.4g}" for key, value in figures.items() if isinstance(value, int | float)},
        "protocol": {key: str(value) for key, value in flatten(values).items()},
    }
