"""Heun's method: Euler's step, corrected by the velocity where it led (EDM, arXiv 2206.00364, algorithm 1).

Unlike EDM, the last step is corrected too: the velocity is finite at t = 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.api import NoiseSource, Step, VelocityFn
from mpdit_core.samplers.grids import FixedGridSampler


@dataclass(frozen=True, kw_only=True)
class Heun(FixedGridSampler):
    """Heun's method. Two evaluations per step."""

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        x_t = noise
        for t, s in self.intervals(noise):
            h = s - t
            v_t = velocity_fn(x_t, t)
            v_s = velocity_fn(x_t + h * v_t, s)
            x_t = x_t + h / 2 * (v_t + v_s)
            yield Step(s, x_t)
