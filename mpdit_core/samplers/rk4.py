"""The classical Runge-Kutta method of order 4 (Hairer, Nørsett, Wanner: Solving ODEs I, section II.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.api import NoiseSource, Step, VelocityFn
from mpdit_core.samplers.grids import FixedGridSampler


@dataclass(frozen=True, kw_only=True)
class RungeKutta4(FixedGridSampler):
    """Runge-Kutta of order 4. Four evaluations per step."""

    order: ClassVar[int] = 4
    stochastic: ClassVar[bool] = False

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        x_t = noise
        for t, s in self.intervals(noise):
            x_t = runge_kutta_4(velocity_fn, x_t, t=t, s=s)
            yield Step(s, x_t)


def runge_kutta_4(velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, v_t: Tensor | None = None) -> Tensor:
    """x at time s from `x_t` at time t, in one step. `v_t`: the velocity there, if it is known already."""
    h = s - t
    middle = t + h / 2
    v_1 = velocity_fn(x_t, t) if v_t is None else v_t
    v_2 = velocity_fn(x_t + h / 2 * v_1, middle)
    v_3 = velocity_fn(x_t + h / 2 * v_2, middle)
    v_4 = velocity_fn(x_t + h * v_3, s)
    return x_t + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4)
