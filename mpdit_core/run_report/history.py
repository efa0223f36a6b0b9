"""What the lines of metrics.jsonl say about a run, read in one pass."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MEAN_STEPS = 100


@dataclass
class History:
    """A run's logged quantities."""

    last: dict[str, Any] = field(default_factory=dict)  # the last line of a step; empty where there is none
    seconds: float = 0.0  # time in steps
    series: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    """Quantity → (step, value) in order; values that are not finite are left out."""

    def recent_loss(self) -> float:
        """The mean loss of the last `MEAN_STEPS` steps."""
        recent = [loss for step, loss in self.series["loss"] if step > self.last["step"] - MEAN_STEPS]
        return sum(recent) / len(recent) if recent else float("nan")


def read_history(lines: Iterable[dict[str, Any]]) -> History:
    """`lines` are those of steps, which have a loss, and those of evaluations."""
    history = History()
    images_before = 0
    for line in lines:
        for key, value in line.items():
            if isinstance(value, int | float) and math.isfinite(value) and key != "step":
                history.series[key].append((line["step"], value))
        if "loss" in line:
            history.last = line
            history.seconds += (line["images_seen"] - images_before) / max(line["images_per_second"], 1e-9)
            images_before = line["images_seen"]
    return history
