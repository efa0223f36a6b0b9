"""Reads from a run's folder everything that a report shows."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpdit_core.config import RunConfig
from mpdit_core.data.images import open_image, to_rgb
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.evaluation import EvaluationRecord, read_records
from mpdit_core.model.compute import count
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.reporting import Reporter, Warning
from mpdit_core.run_report.charts import thinned
from mpdit_core.run_report.history import MEAN_STEPS, History, read_history

MAX_FRAMES, FRAME_WIDTH = 12, 480


@dataclass(frozen=True)
class Run:
    """The parts of a run that the page shows."""

    name: str
    number: int  # its colour
    config: RunConfig
    latents: LatentSpec
    history: History
    records: list[EvaluationRecord]
    frames: list[dict[str, Any]]

    def losses_by_images(self) -> list[tuple[float, float]]:
        """(images seen, loss), in order."""
        series = self.history.series.get("loss")
        return [(step * self.config.train.batch_size, loss) for step, loss in series.points] if series else []


def read_run(folder: Path, name: str, *, number: int, report: Reporter) -> Run:
    """Reads the run in `folder`; damaged previews and records are left out, and reported.

    Raises:
        UserError: there is no run (`not-a-run`), or it has not logged a step yet (`no-steps`).
    """
    run = RunFolder(folder)
    config, history = run.config(), read_history(run.metrics())
    if not history.last:
        raise UserError(
            f"{folder} has logged no step yet",
            code="no-steps",
            expected="lines in metrics.jsonl",
            remedy=f"mpdit train --run {folder}",
        )
    records = read_records(run.evals, report=report)
    return Run(name, number, config, run.latents(), history, records, _frames(run, report))


def facts_of(config: RunConfig, history: History) -> dict[str, str]:
    """The run in words: its model, its progress, its time and compute."""
    last, counted = history.last, count(config.model)
    spent = 2 * counted.training_macs * last["images_seen"]
    loss = f"{last['loss']:.4f}" if "loss" in last else "not finite"
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


def _frames(run: RunFolder, report: Reporter) -> list[dict[str, Any]]:
    """At most `MAX_FRAMES` previews; damaged ones are left out, and reported."""
    frames = []
    for path in thinned(run.previews(), MAX_FRAMES):
        try:
            frames.append(_frame(path))
        except UserError as error:
            report(Warning(code="damaged-preview", text=f"left out: {path} cannot be read: {error.what}"))
    return frames


def _frame(path: Path) -> dict[str, Any]:
    """Step, and PNG in base64. Raises `FaultyImageError`, or `UserError` if it is not a regular file."""
    if not path.is_file():
        raise UserError("it is not a regular file", code="cannot-read")
    picture = to_rgb(open_image(path.read_bytes()))
    if picture.width > FRAME_WIDTH:
        height = max(1, round(picture.height * FRAME_WIDTH / picture.width))
        picture = picture.resize((FRAME_WIDTH, height))
    memory = io.BytesIO()
    picture.save(memory, format="PNG")
    return {"step": int(path.stem.removeprefix("step-")), "png": base64.b64encode(memory.getvalue()).decode()}
