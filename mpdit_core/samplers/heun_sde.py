"""A Heun method for the reverse SDE of euler_maruyama.py, of weak order 2.

Source: the predictor-corrector scheme for additive noise of Kloeden and Platen, Numerical Solution of Stochastic
Differential Equations, section 15.1, with the noise's variance over a step by the trapezoidal rule. Unlike SiT's Heun,
which adds the noise before a deterministic step and so is of weak order 1, the same noise enters predictor and
corrector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.api import NoiseSource, Step, VelocityFn, draw_noise
from mpdit_core.samplers.euler_maruyama import WithDiffusion


@dataclass(frozen=True, kw_only=True)
class HeunSDE(WithDiffusion):
    """Heun for the reverse SDE. Two evaluations per step. Steps without noise are Heun's."""

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        x_t = noise
        for t, s in self.intervals(noise):
            h = s - t
            if self.is_noisy(t, s):
                kick = math.sqrt((self.w(t) + self.w(s)) * -h) * draw_noise(x_t, generator)
                d_t = self.drift(velocity_fn, x_t, t)
                d_s = self.drift(velocity_fn, x_t + h * d_t + kick, s)
                x_t = x_t + h / 2 * (d_t + d_s) + kick
            else:
                v_t = velocity_fn(x_t, t)
                v_s = velocity_fn(x_t + h * v_t, s)
                x_t = x_t + h / 2 * (v_t + v_s)
            yield Step(s, x_t)
