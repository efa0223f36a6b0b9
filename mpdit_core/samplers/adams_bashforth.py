"""Adams-Bashforth: each step uses the velocities of earlier steps; high order with one evaluation per step.

Source: Hairer, Nørsett, Wanner: Solving ODEs I, sections III.1 and III.5 (variable steps): the polynomial through the
last velocities is integrated over the step, on any grid. The first steps, with too few earlier velocities, use a
Runge-Kutta method of sufficient order. Each class states how many extra evaluations this costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.protocols import NoiseSource, Step, VelocityFn
from mpdit_core.samplers.grids import FixedGridSampler
from mpdit_core.samplers.heun import heun
from mpdit_core.samplers.rk4 import runge_kutta_4


@dataclass(frozen=True, kw_only=True)
class _AdamsBashforth(FixedGridSampler):
    """Each step uses the last `order` velocities; the first steps, a method whose local error has the same order."""

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        x_t = noise
        times: list[float] = []
        velocities: list[Tensor] = []
        for t, s in self.intervals(noise):
            times = [*times, t][-self.order :]
            if len(times) < self.order and self.order > 2:
                velocities.append(velocity_fn(x_t, t))
                start = heun if self.order == 3 else runge_kutta_4
                x_t = start(velocity_fn, x_t, t=t, s=s, v_t=velocities[-1])
            else:
                velocities = [*velocities, velocity_fn(x_t, t)][-self.order :]
                weights = integration_weights(times, t=t, s=s)
                x_t = x_t + sum(w * v for w, v in zip(weights, velocities, strict=True))
            yield Step(s, x_t)


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth2(_AdamsBashforth):
    """Adams-Bashforth of order 2. One evaluation per step."""

    order: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth3(_AdamsBashforth):
    """Adams-Bashforth of order 3. One evaluation per step, and 2 more to start."""

    order: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth4(_AdamsBashforth):
    """Adams-Bashforth of order 4. One evaluation per step, and 9 more to start."""

    order: ClassVar[int] = 4


def integration_weights(times: Sequence[float], *, t: float, s: float) -> list[float]:
    """Weights w with `sum(w_i·f(times_i))` = the integral from t to s of the polynomial through the values f.

    The Lagrange polynomials are integrated by Gauss-Legendre quadrature of two points, exact to degree 3.
    """
    half, middle = (s - t) / 2, (s + t) / 2
    nodes = [middle - half / 3**0.5, middle + half / 3**0.5]
    return [half * sum(_lagrange(times, i, at=node) for node in nodes) for i in range(len(times))]


def _lagrange(times: Sequence[float], i: int, *, at: float) -> float:
    return math.prod((at - other) / (times[i] - other) for j, other in enumerate(times) if j != i)
