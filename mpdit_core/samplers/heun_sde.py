"""A Heun method for the reverse SDE of euler_maruyama.py, of weak order 2.

Source: the predictor-corrector scheme for additive noise of Kloeden and Platen, Numerical Solution of Stochastic
Differential Equations, section 15.1, with the variance of a step's noise by the trapezoidal rule. SiT's Heun adds the
noise before a deterministic step, which is of weak order 1; here the same noise enters predictor and corrector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.protocols import NoiseSource, VelocityFn, draw_noise
from mpdit_core.samplers.euler_maruyama import WithDiffusion
from mpdit_core.samplers.heun import heun


@dataclass(frozen=True, kw_only=True)
class HeunSDE(WithDiffusion):
    """Heun for the reverse SDE. Two evaluations per step. Steps without noise are ordinary Heun steps."""

    order: ClassVar[int] = 2

    def step(self, velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, generator: NoiseSource) -> Tensor:
        if not self.is_noisy(t, s):
            return heun(velocity_fn, x_t, t=t, s=s)
        h = s - t
        noise_term = math.sqrt((self.w(t) + self.w(s)) * -h) * draw_noise(x_t, generator)
        d_t = self.drift(velocity_fn, x_t, t)
        d_s = self.drift(velocity_fn, x_t + h * d_t + noise_term, s)
        return x_t + h / 2 * (d_t + d_s) + noise_term
