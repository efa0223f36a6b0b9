"""The contract of samplers, as a check on flows whose solution is known exactly."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpdit_core.plugins import checked_options
from mpdit_core.protocols import NoiseSource
from mpdit_core.testing.conformance import require, require_contract

MEAN, STD = 0.4, 0.6  # of the Gaussian data of the exact flow
ORDER_FLOWS = ((MEAN, STD), (-0.7, 0.25), (1.0, 1.6))  # on only one, leading errors may cancel by chance
SHAPE = (3, 2, 8, 8)
FLOOR = 2e-6  # errors below this are rounding: solvers may keep their times in float32


@dataclass(frozen=True)
class SamplerReport:
    """The measured order of convergence (NaN where all errors are rounding), and the evaluations at 20 steps."""

    order: float
    nfe: int


class GaussianFlow:
    """The flow whose data are normal, with the same mean and standard deviation in every pixel. Its solution is exact.

    x_t is normal with mean (1 - t)·mean and variance V = ((1 - t)·std)² + t²; the velocity is
    `-mean + (t - (1 - t)·std²) / V · (x_t - (1 - t)·mean)`, and the ODE takes noise z to `mean + std·z`.
    It checks its arguments and counts the evaluations.
    """

    def __init__(self, like: Tensor, *, mean: float = MEAN, std: float = STD):
        self.like, self.mean, self.std, self.nfe = like, mean, std, 0

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        self.nfe += 1
        require(x_t.shape == self.like.shape, f"velocity_fn called with x_t {tuple(self.like.shape)}", x_t.shape)
        require(x_t.dtype == self.like.dtype, f"velocity_fn called with x_t {self.like.dtype}", x_t.dtype)
        require(isinstance(t, float | int), "velocity_fn called with t as a float", type(t).__name__)
        require(-1e-6 <= t <= 1 + 1e-6, "t within 0 and 1", t)
        variance = ((1 - t) * self.std) ** 2 + t**2
        return -self.mean + (t - (1 - t) * self.std**2) / variance * (x_t - (1 - t) * self.mean)


def check_sampler(sampler: type, *, options: Mapping[str, Any] | None = None) -> SamplerReport:
    """Checks a sampler class against its contract, on flows whose solution is known exactly.

    Checked: times decrease and end at t = 0; shape, dtype (float32 and float64) and device stay the same; `noise` is
    not changed; the same generators give the same images; an image does not depend on the others in its batch; a
    stochastic sampler uses the generator; the claimed order of convergence is reached. That is the strong order for
    ODEs. For stochastic samplers it is the weak order, of mean and standard deviation, which are known exactly if noise
    comes from `draw_noise` and x is affine in it. A sampler with `adaptive = True` may take any number of steps, and
    its error must be below 1e-3.

    Args:
        sampler: the class.
        options: fields other than `num_steps`.
    """
    require_contract("samplers", sampler, "a sampler class")
    checked_options(sampler, {"num_steps": 20, **(options or {})}, origin=sampler.__name__)
    make = functools.partial(sampler, **(options or {}))
    nfe = _check_steps(make(num_steps=20))
    _check_repeatable(make(num_steps=20))
    orders = [_order(make, mean, std) for mean, std in ORDER_FLOWS]
    if None in orders:
        return SamplerReport(_sampled_weak_order(make), nfe)
    return SamplerReport(min((m for m in orders if m is not None and not math.isnan(m)), default=math.nan), nfe)


def _noise(dtype: Any, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def _generators(count: int, offset: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + offset + i) for i in range(count)]


def _run(sampler: Any, noise: Tensor, generator: NoiseSource = None, *, mean: float = MEAN, std: float = STD) -> Tensor:
    """The last x of a run."""
    x_t = noise
    for step in sampler.steps(GaussianFlow(noise, mean=mean, std=std), noise, generator):
        x_t = step.x_t
    return x_t


def _check_steps(sampler: Any) -> int:
    """Checks the steps of a sampler of 20 steps in both types, and returns the number of evaluations."""
    nfe = 0
    for dtype in (torch.float32, torch.float64):
        noise = _noise(dtype)
        before, flow = noise.clone(), GaussianFlow(noise)
        steps = list(sampler.steps(flow, noise, _generators(len(noise))))
        times = [step.t for step in steps]
        require(steps, "at least one step")
        require(times[-1] == 0, "the last step to have t == 0", times[-1])
        require(times[0] < 1, "the first step to have t below 1 (it is the state after the step)", times[0])
        require(all(a > b for a, b in itertools.pairwise(times)), "times that decrease", times)
        if not getattr(sampler, "adaptive", False):
            require(len(steps) <= 20, "no more than num_steps = 20 steps", len(steps))
        for step in steps:
            require(step.x_t.shape == noise.shape, f"x_t {tuple(noise.shape)}", tuple(step.x_t.shape))
            require(step.x_t.dtype == dtype, f"x_t to stay {dtype}", step.x_t.dtype)
            require(step.x_t.device == noise.device, f"x_t to stay on {noise.device}", step.x_t.device)
            require(torch.isfinite(step.x_t).all(), "finite x_t", f"NaN or infinity at t = {step.t}")
        require(torch.equal(noise, before), "unchanged noise")
        nfe = flow.nfe
    return nfe


def _check_repeatable(sampler: Any) -> None:
    noise = _noise(torch.float32)
    first = _run(sampler, noise, _generators(len(noise)))
    require(torch.equal(first, _run(sampler, noise, _generators(len(noise)))), "a second run to give the same numbers")
    same = torch.equal(first, _run(sampler, noise, _generators(len(noise), offset=50)))
    require(same != sampler.stochastic, "other generators to matter if, and only if, the sampler is stochastic", same)
    alone = _run(sampler, noise[1:2].clone(), _generators(1, offset=1))
    tolerance = 1e-2 if getattr(sampler, "adaptive", False) else 1e-5
    gap = (alone[0] - first[1]).abs().max().item()
    require(gap <= tolerance, "an image not to depend on the others of its batch", f"a difference of {gap:.2g}")
    if sampler.stochastic:
        one = [_run(sampler, noise, torch.Generator().manual_seed(7)) for _ in range(2)]
        require(torch.equal(*one), "one generator for the batch to give the same numbers again")


def _order(make: Any, mean: float, std: float) -> float | None:
    """The order on one flow: how the error falls when the number of steps doubles.

    That is the largest error of x for ODEs, and the error of mean and standard deviation for stochastic samplers.

    Returns:
        The order from the last doubling whose error is above rounding. NaN for an adaptive sampler, or if all errors
        are rounding. None for a stochastic sampler whose moments are not known exactly.
    """
    sampler = make(num_steps=20)
    noise = _noise(torch.float64)

    def error(count: int) -> float:
        return (_run(make(num_steps=count), noise, mean=mean, std=std) - (mean + std * noise)).abs().max().item()

    if sampler.stochastic:
        moments = {count: _exact_moments(make(num_steps=count), mean, std) for count in (25, 50, 100, 200, 400)}
        errors = {n: abs(found[0] - mean) + abs(found[1] - std) for n, found in moments.items() if found is not None}
        if len(errors) < len(moments):
            return None
    elif getattr(sampler, "adaptive", False):
        require(error(20) < 1e-3, "an adaptive sampler to have an error below 1e-3", f"{error(20):.2g}")
        return math.nan
    else:
        errors = {count: error(count) for count in (5, 10, 20, 40, 80, 160)}

    shown = ", ".join(f"{count}: {value:.1e}" for count, value in errors.items())
    values = list(errors.values())
    require(values[2] < 1, "mean and standard deviation of the data to be reached", f"errors by steps {shown}")
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(values) if b > FLOOR]
    if not slopes:
        return math.nan
    what = f"{'weak ' if sampler.stochastic else ''}order {sampler.order}, as claimed"
    require(slopes[-1] >= sampler.order - 0.4, what, f"{slopes[-1]:.2f} (errors by steps {shown})")
    return slopes[-1]


def _exact_moments(sampler: Any, mean: float, std: float) -> tuple[float, float] | None:
    """Mean and standard deviation of x at the end, on a Gaussian flow; None where the noise is not from `draw_noise`.

    x is affine in the starting noise and in every draw, so its responses to a 1 in each of them give both numbers. A
    row with a 1 in all of them checks that x is affine.
    """

    def final(rows: int, start: list[int]) -> tuple[Tensor, int]:
        """x of each row, and the number of draws. Draw k is 1 in row k + 1 and in the last row, and 0 elsewhere."""
        draws: list[Tensor] = []

        def draw(like: Tensor) -> Tensor:
            draws.append(torch.zeros_like(like))
            draws[-1][[min(len(draws), rows - 1), -1]] = 1
            return draws[-1]

        noise = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
        noise[start] = 1
        return _run(sampler, noise, draw, mean=mean, std=std).flatten(), len(draws)

    try:
        draws = final(1, [])[1]
        x = final(draws + 3, [-2, -1])[0]  # rows: no noise; one draw each; the starting noise; all
    except Exception:  # it draws without draw_noise
        return None
    responses = x[1:-1] - x[0]
    if draws == 0 or abs(x[0] + responses.sum() - x[-1]) > 1e-9 * (1 + x.abs().max()):
        return None
    return x[0].item(), responses.norm().item()


def _sampled_weak_order(make: Any) -> float:
    """How the error of mean and standard deviation falls from 10 to 40 steps, apart from the error by chance."""
    noise, order = _noise(torch.float32, (64, 4, 32, 32)), make(num_steps=20).order
    chance = 5 * STD / noise.numel() ** 0.5
    errors = []
    for count in (10, 40):
        x = _run(make(num_steps=count), noise, torch.Generator().manual_seed(11))
        errors.append(max(abs(x.mean().item() - MEAN), abs(x.std().item() - STD)))
    shown = f"errors of {errors[0]:.2g} at 10 and {errors[1]:.2g} at 40 steps"
    require(errors[1] <= errors[0] * 4 ** -(order - 0.5) + chance, f"weak order {order}, as claimed", shown)
    return math.log(errors[0] / errors[1], 4) if errors[1] > chance else math.nan
