"""The history of a run, read from the lines of metrics.jsonl in one pass and in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MEAN_STEPS = 100
MAX_POINTS = 20_000  # of a quantity; many times what a chart draws
MAX_SERIES = 200  # quantities; a damaged file may have any number of names


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
