"""Euler's method, the simplest sampler and the paper's ODE sampler (arXiv 2603.26357, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.protocols import NoiseSource, VelocityFn
from mpdit_core.samplers.grids import OneStepSampler


@dataclass(frozen=True, kw_only=True)
class Euler(OneStepSampler):
    """Euler's method, `x + h·v`. One evaluation per step."""

    order: ClassVar[int] = 1

    def step(self, velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, generator: NoiseSource) -> Tensor:
        return x_t + (s - t) * velocity_fn(x_t, t)


@dataclass(frozen=True, kw_only=True)
class EulerOfficial(Euler):
    """Euler, counted as in the official code. `num_steps` is the number of time *points*: 250 are 249 evaluations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 2:
            raise ValueError(f"num_steps {self.num_steps}: euler-official counts time points, and needs at least 2")

    def times(self, noise: Tensor) -> list[float]:
        return Euler(num_steps=self.num_steps - 1, grid=self.grid, shift=self.shift, rho=self.rho).times(noise)
