"""Flow schedulers of diffusers as samplers for mpdit: Euler, Heun, DPM-Solver++ (arXiv 2211.01095), UniPC (2302.04867).

Their sigma is our t and their model output is our velocity, so a scheduler can be used as it is.

To add one: a class below, and a line under `[project.entry-points."mpdit.samplers"]` in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from mpdit_core.api import NoiseSource, Step, VelocityFn, option


def _follow(scheduler: Any, velocity_fn: VelocityFn, x_t: Tensor) -> Iterator[Step]:
    """Runs a scheduler whose times are set; yields a step when t decreases (Heun takes two evaluations for that)."""
    sigmas, dtype = scheduler.sigmas.tolist(), x_t.dtype
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = velocity_fn(x_t, sigmas[i])
        x_t = scheduler.step(velocity, timestep, x_t, return_dict=False)[0].to(dtype)
        if i + 1 == len(scheduler.timesteps) or sigmas[i + 2 : i + 3] != sigmas[i + 1 : i + 2]:
            yield Step(sigmas[i + 1], x_t)


@dataclass(frozen=True, kw_only=True)
class Euler:
    """Euler by diffusers. FlowMatchEulerDiscreteScheduler, one evaluation per step."""

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    plugin_api: ClassVar[int] = 2

    num_steps: int = option(50, "intervals between t = 1 and t = 0", minimum=1)
    shift: float = option(1.0, "above 1: more steps close to the noise, which larger images need", minimum=0.01)

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.shift)
        scheduler.set_timesteps(sigmas=[1 - i / self.num_steps for i in range(self.num_steps)], device=noise.device)
        return _follow(scheduler, velocity_fn, noise)


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Heun by diffusers. FlowMatchHeunDiscreteScheduler, two evaluations per step, one in the last (t = 0.001 to 0)."""

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False
    plugin_api: ClassVar[int] = 2

    num_steps: int = option(25, "intervals between t = 1 and t = 0", minimum=2)

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        scheduler = FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(self.num_steps, device=noise.device)
        return _follow(scheduler, velocity_fn, noise)


@dataclass(frozen=True, kw_only=True)
class _Multistep:
    """Solvers in log(alpha / sigma), which is infinite at t = 1: they begin with an Euler step to their first sigma."""

    stochastic: ClassVar[bool] = False
    plugin_api: ClassVar[int] = 2

    num_steps: int = option(25, "intervals between t = 1 and t = 0, one evaluation each", minimum=2)
    shift: float = option(1.0, "above 1: more steps close to the noise, which larger images need", minimum=0.01)

    def scheduler(self) -> Any:
        raise NotImplementedError

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        scheduler = self.scheduler()
        scheduler.set_timesteps(self.num_steps - 1, device=noise.device)
        first = float(scheduler.sigmas[0])
        x_t = noise + (first - 1) * velocity_fn(noise, 1.0)
        yield Step(first, x_t)
        yield from _follow(scheduler, velocity_fn, x_t)


@dataclass(frozen=True, kw_only=True)
class DPM(_Multistep):
    """DPM-Solver++, multistep. One evaluation per step."""

    # The order that every solver_order reaches. check_sampler measures, on three Gaussian flows from 80 to 160 steps:
    # solver_order=1 1.00, =2 1.56 to 1.79 (1.70 to 1.81 from 160 to 320), =3 2.00 to 2.23. Diffusers' options
    # lower_order_final and euler_at_final make no difference; with final_sigmas_type="sigma_min" it does not converge.
    order: ClassVar[int] = 1

    solver_order: Literal[1, 2, 3] = option(2, "1, 2 or 3: number of past evaluations used in a step")

    def scheduler(self) -> Any:
        return DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=self.shift,
            solver_order=self.solver_order,
        )


@dataclass(frozen=True, kw_only=True)
class UniPC(_Multistep):
    """UniPC. A predictor and a corrector in one evaluation per step."""

    # Measured as above: solver_order=1 1.73 to 1.95, =2 2.33 to 2.51, =3 1.38 to 1.79, which is best with few steps.
    order: ClassVar[int] = 1

    solver_order: Literal[1, 2, 3] = option(2, "1, 2 or 3: number of past evaluations used in a step")

    def scheduler(self) -> Any:
        return UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=self.shift,
            solver_order=self.solver_order,
        )
