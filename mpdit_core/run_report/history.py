"""What the lines of metrics.jsonl say about a run, read in one pass, in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MEAN_STEPS = 100
MOST_POINTS = 20_000  # of a quantity; twenty times what a curve draws
MOST_SERIES = 200  # quantities; a damaged or foreign file may name any number
LARGEST, LAST_STEP = 1e200, 2**53  # larger numbers are of no run
NUMBERS_OF_A_STEP = ("images_seen", "images_per_second")


class Series:
    """The (step, value) points of a quantity in order. When there are too many, every second one is dropped."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._stride, self._seen = 1, 0

    def add(self, step: int, value: float) -> None:
        if self._seen % self._stride == 0:
            self.points.append((step, value))
        self._seen += 1
        if len(self.points) > MOST_POINTS:
            del self.points[1::2]
            self._stride *= 2


@dataclass
class History:
    """A run's logged quantities."""

    last: dict[str, Any] = field(default_factory=dict)  # the last line of a step; empty where there is none
    seconds: float = 0.0  # time in steps
    series: dict[str, Series] = field(default_factory=dict)  # values that are not finite are left out
    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=MEAN_STEPS))  # losses

    def recent_loss(self) -> float:
        """The mean loss of the last `MEAN_STEPS` steps."""
        losses = [loss for step, loss in self.recent if step > self.last["step"] - MEAN_STEPS]
        return sum(losses) / len(losses) if losses else math.nan


def read_history(lines: Iterable[Mapping[str, Any]]) -> History:
    """`lines` are those of steps, which have a loss, and those of evaluations. Others are passed over."""
    history = History()
    images_before = 0.0
    for line in lines:
        if not 0 <= line["step"] < LAST_STEP:
            continue
        numbers = {key: value for key, value in line.items() if key != "step" and _is_number(value)}
        for key, value in numbers.items():
            if key in history.series or len(history.series) < MOST_SERIES:
                history.series.setdefault(key, Series()).add(line["step"], value)
        if _is_step(line, numbers):
            history.last = {**line, "loss": numbers.get("loss")}
            if "loss" in numbers:
                history.recent.append((line["step"], numbers["loss"]))
            history.seconds += (line["images_seen"] - images_before) / max(line["images_per_second"], 1e-9)
            images_before = line["images_seen"]
    return history


def _is_step(line: Mapping[str, Any], numbers: Mapping[str, float]) -> bool:
    return "loss" in line and all(key in numbers for key in NUMBERS_OF_A_STEP)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number of a size that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
