"""Euler-Maruyama: the reverse SDE, whose marginals are those of the ODE for any diffusion w_t.

    dx = (v - w_t·score) dt + sqrt(2·w_t) dW,  time running from 1 to 0
    score = -((1 - t)·v + x) / t

Source: SiT (arXiv 2401.08740), section 2.3 and table 1 (with the same direction of t); the published SDE samples of
MPDiT use it. `order` is the weak order, the order of the error of the distribution, which matters for sampling.

To add a diffusion: a line in `DIFFUSIONS` and its name in `DiffusionName`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mpdit_core.protocols import NoiseSource, VelocityFn, draw_noise, option
from mpdit_core.samplers.grids import OneStepSampler

DiffusionName = Literal["SBDM", "sigma", "constant", "decreasing", "increasing-decreasing"]

DIFFUSIONS: dict[str, Callable[[float, float], float]] = {
    "SBDM": lambda t, norm: norm * t / (1 - t),
    "sigma": lambda t, norm: norm * t,
    "constant": lambda _, norm: norm,
    "decreasing": lambda t, norm: 0.25 * (norm * math.cos(math.pi * (1 - t)) + 1) ** 2,
    "increasing-decreasing": lambda t, norm: norm * math.sin(math.pi * (1 - t)) ** 2,
}


@dataclass(frozen=True, kw_only=True)
class WithDiffusion(OneStepSampler):
    """The options that SDE samplers share. A step adds noise only if it lies within [t_min, t_max]."""

    stochastic: ClassVar[bool] = True

    diffusion: DiffusionName = option("sigma", "w_t, one of SBDM, sigma, constant, decreasing, increasing-decreasing")
    norm: float = option(1.0, "factor of the diffusion", minimum=0)
    t_max: float = option(0.96, "above this time steps are deterministic; below 1 for SBDM", minimum=0, maximum=1)
    t_min: float = option(0.04, "below this time steps are deterministic", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_min > self.t_max:
            raise ValueError(f"t_min {self.t_min} is above t_max {self.t_max}")
        if self.diffusion == "SBDM" and self.t_max >= 1:
            raise ValueError("diffusion SBDM is infinite at t = 1: choose t_max below 1, such as 0.96")

    def w(self, t: float) -> float:
        return DIFFUSIONS[self.diffusion](t, self.norm)

    def is_noisy(self, t: float, s: float) -> bool:
        """Whether the step from t to s adds noise. The step to t = 0 never does."""
        tolerance = 1e-9  # times on a grid are rounded
        return t <= self.t_max + tolerance and s >= self.t_min - tolerance and s > 0

    def noise_term(self, x_t: Tensor, *, t: float, s: float, generator: NoiseSource) -> Tensor:
        """The noise that the step from t to s adds, with the diffusion w_t at its start."""
        return math.sqrt(2 * self.w(t) * (t - s)) * draw_noise(x_t, generator)

    def drift(self, velocity_fn: VelocityFn, x_t: Tensor, t: float) -> Tensor:
        """`v - w_t·score`, one evaluation."""
        v = velocity_fn(x_t, t)
        score = -((1 - t) * v + x_t) / t
        return v - self.w(t) * score


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(WithDiffusion):
    """Euler-Maruyama on the reverse SDE. One evaluation per step.

    Unlike the official sampler it starts at t = 1, where x is pure noise, and ends with a step along the ODE.
    """

    order: ClassVar[int] = 1

    def step(self, velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, generator: NoiseSource) -> Tensor:
        if not self.is_noisy(t, s):
            return x_t + (s - t) * velocity_fn(x_t, t)
        x_s = x_t + (s - t) * self.drift(velocity_fn, x_t, t)
        return x_s + self.noise_term(x_t, t=t, s=s, generator=generator)


@dataclass(frozen=True, kw_only=True)
class EulerMaruyamaOfficial(WithDiffusion):
    """The official SDE sampler: `num_steps` time *points* from t_max 0.96 to t_min 0.04, then a step to 0 with the same
    drift and no noise. It starts from pure noise at 0.96, and takes `num_steps` evaluations.
    """

    order: ClassVar[int] = 0  # x at 0.96 is not pure noise: this leaves an error that more steps do not reduce

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid != "uniform":
            raise ValueError("the official sampler has only the uniform grid; euler-maruyama has all grids")

    def times(self, noise: Tensor) -> list[float]:
        n = self.num_steps
        points = [self.t_max + i / max(n - 1, 1) * (self.t_min - self.t_max) for i in range(n)]
        return [*points, 0.0]

    def step(self, velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, generator: NoiseSource) -> Tensor:
        x_s = x_t + (s - t) * self.drift(velocity_fn, x_t, t)
        return x_s + self.noise_term(x_t, t=t, s=s, generator=generator) if s > 0 else x_s
