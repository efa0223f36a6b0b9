"""Heun's method: an Euler step, corrected with the velocity at its end (EDM, arXiv 2206.00364, algorithm 1).

Unlike EDM, the last step is corrected too: the velocity is finite at t = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.protocols import NoiseSource, VelocityFn
from mpdit_core.samplers.grids import OneStepSampler


@dataclass(frozen=True, kw_only=True)
class Heun(OneStepSampler):
    """Heun's method. Two evaluations per step."""

    order: ClassVar[int] = 2

    def step(self, velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, generator: NoiseSource) -> Tensor:
        return heun(velocity_fn, x_t, t=t, s=s)


def heun(velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, v_t: Tensor | None = None) -> Tensor:
    """x at time s from `x_t` at time t, in one step. `v_t`: the velocity at time t, if it is known already."""
    h = s - t
    v_t = velocity_fn(x_t, t) if v_t is None else v_t
    v_s = velocity_fn(x_t + h * v_t, s)
    return x_t + h / 2 * (v_t + v_s)
