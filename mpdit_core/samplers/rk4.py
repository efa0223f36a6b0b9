"""The classical Runge-Kutta method of order 4 (Hairer, Nørsett, Wanner: Solving ODEs I, section II.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.protocols import NoiseSource, VelocityFn
from mpdit_core.samplers.grids import OneStepSampler


@dataclass(frozen=True, kw_only=True)
class RungeKutta4(OneStepSampler):
    """Runge-Kutta of order 4. Four evaluations per step."""

    order: ClassVar[int] = 4

    def step(self, velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, generator: NoiseSource) -> Tensor:
        return runge_kutta_4(velocity_fn, x_t, t=t, s=s)


def runge_kutta_4(velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, v_t: Tensor | None = None) -> Tensor:
    """x at time s from `x_t` at time t, in one step. `v_t`: the velocity at time t, if it is known already."""
    h = s - t
    middle = t + h / 2
    v_1 = velocity_fn(x_t, t) if v_t is None else v_t
    v_2 = velocity_fn(x_t + h / 2 * v_1, middle)
    v_3 = velocity_fn(x_t + h / 2 * v_2, middle)
    v_4 = velocity_fn(x_t + h * v_3, s)
    return x_t + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4)
