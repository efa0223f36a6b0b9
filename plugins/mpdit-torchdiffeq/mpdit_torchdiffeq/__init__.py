"""An adaptive ODE solver as a sampler for mpdit: torchdiffeq's Dormand-Prince 5(4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchdiffeq import odeint

from mpdit_core.api import NoiseSource, Step, VelocityFn, option


@dataclass(frozen=True, kw_only=True)
class Dopri5:
    """Dormand-Prince 5(4), adaptive. Six evaluations per step; the tolerances determine the number of steps.

    A batch has common step sizes, so an image may depend on the other images of its batch, within the tolerance.
    """

    order: ClassVar[int] = 5
    stochastic: ClassVar[bool] = False
    adaptive: ClassVar[bool] = True
    plugin_api: ClassVar[int] = 2

    num_steps: int = option(
        1,
        "number of states returned, at equal intervals of time; the solver chooses its own steps between them",
        minimum=1,
    )
    rtol: float = option(1e-5, "relative tolerance", minimum=1e-12)
    atol: float = option(1e-5, "absolute tolerance", minimum=1e-12)

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        times = torch.linspace(1, 0, self.num_steps + 1, dtype=torch.float64, device=noise.device)

        def derivative(t: Tensor, x_t: Tensor) -> Tensor:
            return velocity_fn(x_t, t.item())

        # step_t: a solver's step ends at t = 0; beyond that there is no velocity
        states = odeint(
            derivative, noise, times, rtol=self.rtol, atol=self.atol, method="dopri5", options={"step_t": times[-1:]}
        )
        for t, x_t in zip(times.tolist()[1:], torch.as_tensor(states)[1:], strict=True):
            yield Step(t, x_t)
