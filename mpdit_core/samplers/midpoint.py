"""The midpoint method: the velocity half-way decides the step (Hairer, Nørsett, Wanner: Solving ODEs I, section II.1).

It never evaluates the network at t = 0, where training with logit-normal times hardly ever looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.api import NoiseSource, Step, VelocityFn
from mpdit_core.samplers.grids import FixedGridSampler


@dataclass(frozen=True, kw_only=True)
class Midpoint(FixedGridSampler):
    """The midpoint method. Two evaluations per step."""

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        x_t = noise
        for t, s in self.intervals(noise):
            h = s - t
            half_way = x_t + h / 2 * velocity_fn(x_t, t)
            x_t = x_t + h * velocity_fn(half_way, t + h / 2)
            yield Step(s, x_t)
