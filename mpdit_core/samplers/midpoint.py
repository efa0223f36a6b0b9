"""The midpoint method: a step with the velocity at its middle (Hairer, Nørsett, Wanner: Solving ODEs I, section II.1).

It never evaluates the network at t = 0, close to which logit-normal times give almost no training samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.protocols import NoiseSource, VelocityFn
from mpdit_core.samplers.grids import OneStepSampler


@dataclass(frozen=True, kw_only=True)
class Midpoint(OneStepSampler):
    """The midpoint method. Two evaluations per step."""

    order: ClassVar[int] = 2

    def step(self, velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, generator: NoiseSource) -> Tensor:
        h = s - t
        half_way = x_t + h / 2 * velocity_fn(x_t, t)
        return x_t + h * velocity_fn(half_way, t + h / 2)
