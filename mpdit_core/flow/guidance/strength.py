"""How strongly a sample is guided, and when: scale, interval (arXiv 2404.07724) and schedule (arXiv 2404.13040).

To add a schedule of scales: a function of t in `SCHEDULES` whose mean over [0, 1] is 1, and its name in
`GuidanceSchedule` of config.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from mpdit_core.config import GuidanceSchedule
from mpdit_core.errors import UserError
from mpdit_core.flow.guidance.cfg import ClassifierFree
from mpdit_core.flow.guidance.rule import GuidanceRule

# w(t) = 1 + (guidance_scale - 1)·schedule(t): rising towards the data (arXiv 2404.13040, section 4)
SCHEDULES: dict[GuidanceSchedule, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda t: 2 * (1 - t),
    "cosine": lambda t: 1 + math.cos(math.pi * t),
}


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Strength, times and rule of guidance. Scale 1 is off. `interval`: (lo, hi) of t, both ends inclusive."""

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    schedule: GuidanceSchedule = "constant"
    rule: GuidanceRule = field(default_factory=ClassifierFree)

    def __post_init__(self) -> None:
        lo, hi = self.interval
        if not 0 <= lo <= hi <= 1:
            raise UserError(
                f"guidance interval {lo:g},{hi:g}",
                code="invalid-value",
                expected="0 <= LO <= HI <= 1, times t where 1 is noise and 0 data",
                remedy="e.g. --guidance-interval 0.1,0.8",
            )
        if not math.isfinite(self.scale) or self.scale < 0:
            raise UserError(
                f"guidance scale {self.scale}", code="invalid-value", expected="a number of at least 0; 1 is off"
            )

    @property
    def is_off(self) -> bool:
        return self.scale == 1

    def acts_at(self, t: float) -> bool:
        """Whether guidance is on and `t` lies in the interval."""
        lo, hi = self.interval
        tolerance = 1e-9  # times on a grid are rounded
        return not self.is_off and lo - tolerance <= t <= hi + tolerance

    def scale_at(self, t: float) -> float:
        """w(t); 1 outside the interval."""
        return 1 + (self.scale - 1) * SCHEDULES[self.schedule](t) if self.acts_at(t) else 1.0
