"""`mpdit report RUN`: one HTML page of a run that needs nothing else: curves, previews, evaluations, configuration.

Pictures are inside it (SVG, and the PNGs as base64), so that it opens offline and can be mailed.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mpdit_core import __version__
from mpdit_core.config import RunConfig
from mpdit_core.errors import UserError
from mpdit_core.model.compute import count, training_macs
from mpdit_core.reporting import Event, Result, Saved, Warn
from mpdit_core.runtime import files
from mpdit_core.settings import read_toml, to_toml, validate

CURVES = {
    "loss": "loss", "grad_norm": "gradient norm", "learning_rate": "learning rate",
    "images_per_second": "images/s", "mfu": "model-FLOP utilisation",
}  # fmt: skip
MOST_FRAMES, FRAME_WIDTH = 12, 480
MEAN_STEPS = 100
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}
td,th{padding:.15em 1em .15em 0;text-align:left;vertical-align:top}th{font-weight:600}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:1em}
.film{display:flex;overflow-x:auto;gap:.8em}figure{margin:0}figcaption{font-size:.85em;color:#666}
pre{background:#f5f5f5;padding:1em;overflow-x:auto;font-size:.85em}svg{width:100%;height:auto}"""


def report(run: Path, *, out: Path | None = None) -> Iterator[Event]:
    """Writes the page to `out`, by default `RUN/report.html`.

    Raises:
        UserError: no run there, or one that has not logged a step yet.
    """
    run = Path(run)
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} is not a run", expected="a folder with config.toml, made by `mpdit train`")
    config = validate(RunConfig, read_toml(run / "config.toml"), origin=str(run / "config.toml"))
    lines, torn = read_metrics(run / "metrics.jsonl")
    metrics = [line for line in lines if "loss" in line]  # the others are evaluations
    if torn:
        yield Warn(text=f"{torn} unreadable lines of {run / 'metrics.jsonl'} are left out")
    if not metrics:
        raise UserError(
            f"{run} has logged no step yet", expected="lines in metrics.jsonl", remedy=f"mpdit train --run {run}"
        )
    evaluations = sorted(((p, files.read_json(p)) for p in (run / "evals").glob("*.json")), key=_order)
    facts = _facts(config, metrics)
    sections = [
        f"<h1>{html.escape(run.name)}</h1>", _table(facts),
        "<h2>Curves</h2><div class=curves>", *_curves(metrics), *_evaluation_curves(lines), "</div>",
        *_filmstrip(run / "samples"),
        *_evaluations(evaluations),
        f"<h2>Configuration</h2><pre>{html.escape(to_toml(config))}</pre>",
        f"<p><small>mpdit {__version__}</small></p>",
    ]  # fmt: skip
    path = out or run / "report.html"
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(run.name)}</title>"
    files.write_text(path, f"{head}<style>{STYLE}</style><body>\n" + "\n".join(sections) + "\n</body></html>\n")
    yield Saved(what="report", path=path)
    yield Result(data={"report": path, "facts": facts, "evaluations": len(evaluations)})


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of metrics.jsonl, and how many cannot be read (a run under way may be writing its last)."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    read, torn = [], 0
    for line in lines:
        try:
            read.append(json.loads(line))
        except json.JSONDecodeError:
            torn += 1
    return read, torn


def _facts(config: RunConfig, metrics: list[dict[str, Any]]) -> dict[str, str]:
    last, counted = metrics[-1], count(config.model)
    spent = 2 * training_macs(config.model) * last["images_seen"]
    recent = [m["loss"] for m in metrics if m["step"] > last["step"] - MEAN_STEPS and m["loss"] is not None]
    seconds, before = 0.0, 0
    for line in metrics:
        seconds += (line["images_seen"] - before) / max(line["images_per_second"], 1e-9)
        before = line["images_seen"]
    return {
        "preset": config.preset,
        "parameters": f"{counted.parameters:,}",
        "forward pass": f"{counted.macs / 1e9:.3g} GMACs an image",
        "steps": f"{last['step']:,}",
        "images seen": f"{last['images_seen']:,}",
        "loss": f"{last['loss']:.4f}, mean of {MEAN_STEPS} steps {sum(recent) / max(len(recent), 1):.4f}",
        "time in steps": f"{seconds / 3600:.2f} h" if seconds > 3600 else f"{seconds / 60:.1f} min",
        "compute spent": f"{spent:.3g} FLOPs ({spent / 1e15 / 86400:.3g} PFLOP/s-days), by formula",
    }


def _table(rows: dict[str, str]) -> str:
    cells = (f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _curves(metrics: list[dict[str, Any]]) -> Iterator[str]:
    for key, title in CURVES.items():
        points = [(m["step"], m[key]) for m in metrics if isinstance(m.get(key), int | float)]
        if len(points) > 1:
            yield f"<figure>{curve(points, smooth=key == 'loss')}<figcaption>{title}</figcaption></figure>"


def _evaluation_curves(lines: list[dict[str, Any]]) -> Iterator[str]:
    for key in sorted({key for line in lines for key in line if key.startswith("eval/")}):
        points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
        if len(points) > 1:
            title = f"{key.removeprefix('eval/').replace('_', ' ')}, measured in the run"
            yield f"<figure>{curve(points)}<figcaption>{html.escape(title)}</figcaption></figure>"


def curve(points: Sequence[tuple[float, float]], *, smooth: bool = False) -> str:
    """An SVG line of `(x, y)` points with its extremes written at the axes; `smooth` adds a running mean."""
    points = points[:: max(1, len(points) // 1000)]
    width, height, left, bottom = 460, 200, 62, 24
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    spread_x, spread_y = (xs[-1] - xs[0]) or 1, (high - low) or 1

    def path(values: Sequence[float]) -> str:
        places = (
            f"{left + (x - xs[0]) / spread_x * (width - left - 8):.1f},"
            f"{8 + (high - y) / spread_y * (height - bottom - 16):.1f}"
            for x, y in zip(xs, values, strict=True)
        )
        return " ".join(places)

    def text(x: float, y: float, words: str, anchor: str) -> str:
        return f"<text x={x} y={y} text-anchor={anchor}>{words}</text>"

    lines = [f'<polyline points="{path(ys)}" stroke="{"#9cc3e6" if smooth else "#1f6fb4"}"/>']
    if smooth:
        mean, running = ys[0], []
        weight = math.exp(-1 / max(1, len(ys) / 30))
        for y in ys:
            mean = weight * mean + (1 - weight) * y
            running.append(mean)
        lines.append(f'<polyline points="{path(running)}" stroke="#0b3d6b"/>')
    return (
        f'<svg viewBox="0 0 {width} {height}" font-size=11 fill="#555">'
        f'<rect x={left} y=8 width={width - left - 8} height={height - bottom - 16} fill="#fafafa"/>'
        f"<g fill=none stroke-width=1.5>{''.join(lines)}</g>"
        + text(left - 6, 16, f"{high:.4g}", "end")
        + text(left - 6, height - bottom - 8, f"{low:.4g}", "end")
        + text(left, height - 12, f"step {xs[0]:,}", "start")
        + text(width - 8, height - 12, f"{xs[-1]:,}", "end")
        + "</svg>"
    )


def _filmstrip(folder: Path) -> Iterator[str]:
    frames = sorted(p for p in folder.glob("step-*.png") if not p.stem.endswith("-raw"))
    if not frames:
        return
    places = sorted({round(i * (len(frames) - 1) / max(1, MOST_FRAMES - 1)) for i in range(MOST_FRAMES)})
    chosen = [frames[i] for i in places if i < len(frames)]
    yield "<h2>Previews</h2><p>The same noise and labels at every step.</p><div class=film>"
    for frame in chosen:
        step = int(frame.stem.split("-")[1])
        yield f"<figure><img src='{_picture(frame)}' alt='step {step}'><figcaption>step {step:,}</figcaption></figure>"
    yield "</div>"


def _picture(path: Path) -> str:
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    if picture.width > FRAME_WIDTH:
        picture = picture.resize((FRAME_WIDTH, round(picture.height * FRAME_WIDTH / picture.width)))
    memory = io.BytesIO()
    picture.save(memory, format="PNG")
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()


def _order(evaluation: tuple[Path, Any]) -> tuple[int, str]:
    """By the step of the model measured, then by name."""
    path, record = evaluation
    model = record.get("model") if isinstance(record, dict) else None
    return (model.get("step") or 0 if isinstance(model, dict) else 0, path.name)


def _evaluations(evaluations: list[tuple[Path, Any]]) -> Iterator[str]:
    if not evaluations:
        return
    yield "<h2>Evaluations</h2>"
    for path, record in evaluations:
        flat = {key: json.dumps(value) for key, value in record.items()} if isinstance(record, dict) else {}
        measured = record.get("metrics") if isinstance(record, dict) else None
        shown = {k: f"{v:.4g}" for k, v in measured.items() if isinstance(v, int | float)} if measured else {}
        details = f"<details><summary>how it was measured</summary>{_table(flat)}</details>"
        model = record.get("model") if isinstance(record, dict) else None
        title = f"step {model['step']:,}: {path.stem}" if isinstance(model, dict) and "step" in model else path.stem
        yield f"<h3>{html.escape(title)}</h3>{_table(shown)}{details}"
