"""Reads from a run's folder everything that a report shows."""

from __future__ import annotations

import base64
import io
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpdit_core.config import RunConfig
from mpdit_core.data.images import open_image, to_rgb
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.evaluation import EvaluationRecord, read_records
from mpdit_core.model.compute import count
from mpdit_core.models.run_folder import RunFolder, step_of
from mpdit_core.reporting import Reporter, Warning
from mpdit_core.run_report.charts import thinned

MEAN_STEPS = 100
MAX_POINTS = 20_000  # of a quantity; many times what a chart draws
MAX_SERIES = 200  # quantities; a damaged file may have any number of names
MAX_FRAMES, FRAME_WIDTH = 12, 480


class Series:
    """The (step, value) points of a quantity in order. If there are too many, every second one is dropped."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self._stride, self._seen = 1, 0

    def add(self, step: float, value: float) -> None:
        if self._seen % self._stride == 0:
            self.points.append((step, value))
        self._seen += 1
        if len(self.points) > MAX_POINTS:
            del self.points[1::2]
            self._stride *= 2


@dataclass
class History:
    """A run's logged quantities."""

    last: Mapping[str, float] = field(default_factory=dict)  # the last line of a step; empty where there is none
    seconds: float = 0.0  # time in steps
    series: dict[str, Series] = field(default_factory=dict)
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MEAN_STEPS))  # losses

    def recent_loss(self) -> float:
        """The mean loss of the last `MEAN_STEPS` steps."""
        losses = [loss for step, loss in self.recent if step > self.last["step"] - MEAN_STEPS]
        return sum(losses) / len(losses) if losses else math.nan


def read_history(lines: Iterable[Mapping[str, float]]) -> History:
    """The history in `lines` from `RunFolder.metrics`: lines of steps have the images seen, others are evaluations."""
    history = History()
    images_before = 0.0
    for line in lines:
        for key in line.keys() - {"step"}:
            if key in history.series or len(history.series) < MAX_SERIES:
                history.series.setdefault(key, Series()).add(line["step"], line[key])
        if {"images_seen", "images_per_second"} <= line.keys():
            history.last = line
            if "loss" in line:
                history.recent.append((line["step"], line["loss"]))
            history.seconds += (line["images_seen"] - images_before) / max(line["images_per_second"], 1e-9)
            images_before = line["images_seen"]
    return history


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
    """Step, and PNG in base64, of at most `MAX_FRAMES` previews; damaged ones are left out, and reported."""
    frames = []
    for path in thinned(run.previews(), MAX_FRAMES):
        try:
            if not path.is_file():
                raise UserError("it is not a regular file", code="cannot-read")
            picture = to_rgb(open_image(path.read_bytes()))
        except UserError as error:
            report(Warning(code="damaged-preview", text=f"left out: {path} cannot be read: {error.what}"))
            continue
        if picture.width > FRAME_WIDTH:
            height = max(1, round(picture.height * FRAME_WIDTH / picture.width))
            picture = picture.resize((FRAME_WIDTH, height))
        memory = io.BytesIO()
        picture.save(memory, format="PNG")
        frames.append({"step": step_of(path), "png": base64.b64encode(memory.getvalue()).decode()})
    return frames
