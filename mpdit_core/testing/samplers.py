"""The contract of samplers, as a check on flows whose solution is known exactly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpdit_core.api import NoiseSource
from mpdit_core.plugins import check_options
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
    make = _maker(sampler, options or {})
    nfe = _check_steps(make)
    _check_repeatable(make)
    order = _weak_order(make) if sampler.stochastic else _order(make)
    return SamplerReport(order, nfe)


def _maker(sampler: type, options: Mapping[str, Any]):
    check_options(sampler, {"num_steps": 20, **options}, origin=sampler.__name__)
    return lambda num_steps: sampler(num_steps=num_steps, **options)


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


def _check_steps(make: Any) -> int:
    nfe = 0
    for dtype in (torch.float32, torch.float64):
        noise = _noise(dtype)
        before, flow, sampler = noise.clone(), GaussianFlow(noise), make(20)
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


def _check_repeatable(make: Any) -> None:
    noise = _noise(torch.float32)
    sampler = make(20)
    first = _run(sampler, noise, _generators(len(noise)))
    require(torch.equal(first, _run(sampler, noise, _generators(len(noise)))), "a second run to give the same numbers")
    other = _run(sampler, noise, _generators(len(noise), offset=50))
    same = torch.equal(first, other)
    require(same != sampler.stochastic, "other generators to matter if, and only if, the sampler is stochastic", same)
    alone = _run(make(20), noise[1:2].clone(), _generators(1, offset=1))
    tolerance = 1e-2 if getattr(sampler, "adaptive", False) else 1e-5
    gap = (alone[0] - first[1]).abs().max().item()
    require(gap <= tolerance, "an image not to depend on the others of its batch", f"a difference of {gap:.2g}")
    if sampler.stochastic:
        one = [_run(sampler, noise, torch.Generator().manual_seed(7)) for _ in range(2)]
        require(torch.equal(*one), "one generator for the batch to give the same numbers again")


def _order(make: Any) -> float:
    """The strong order, the lowest over several flows; NaN for an adaptive or an exact sampler."""
    measured = [_order_on(make, mean, std) for mean, std in ORDER_FLOWS]
    return min((m for m in measured if not math.isnan(m)), default=math.nan)


def _order_on(make: Any, mean: float, std: float) -> float:
    """The strong order on one flow: how the largest error falls when the number of steps doubles."""
    noise = _noise(torch.float64)
    claimed, exact = make(20).order, mean + std * noise

    def error(count: int) -> float:
        return (_run(make(count), noise, mean=mean, std=std) - exact).abs().max().item()

    if getattr(make(20), "adaptive", False):
        require(error(20) < 1e-3, "an adaptive sampler to have an error below 1e-3", f"{error(20):.2g}")
        return math.nan
    counts = (5, 10, 20, 40, 80, 160)
    errors = [error(count) for count in counts]
    return _slope(counts, errors, claimed, what="order")


def _slope(counts: tuple[int, ...], errors: list[float], claimed: int, *, what: str) -> float:
    """The order from the last doubling of steps whose error is above rounding; NaN if all errors are rounding."""
    shown = ", ".join(f"{n}: {e:.1e}" for n, e in zip(counts, errors, strict=True))
    require(errors[2] < 1, "mean and standard deviation of the data to be reached", f"errors by steps {shown}")
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors) if b > FLOOR]
    if not slopes:
        return math.nan
    reached = slopes[-1] >= claimed - 0.4
    require(reached, f"{what} {claimed}, as claimed", f"{slopes[-1]:.2f} (errors by steps {shown})")
    return slopes[-1]


def _weak_order(make: Any) -> float:
    """The order of mean and standard deviation at the end, from exact values where possible, else from samples."""
    measured = [_weak_order_on(make, mean, std) for mean, std in ORDER_FLOWS]
    if None in measured:
        return _sampled_weak_order(make)
    return min((m for m in measured if m is not None and not math.isnan(m)), default=math.nan)


def _weak_order_on(make: Any, mean: float, std: float) -> float | None:
    counts = (25, 50, 100, 200, 400)
    errors = []
    for count in counts:
        moments = _exact_moments(make(count), mean, std)
        if moments is None:
            return None
        errors.append(abs(moments[0] - mean) + abs(moments[1] - std))
    return _slope(counts, errors, make(20).order, what="weak order")


class _Impulses:
    """Noise for `draw_noise` that is not random: draw k is 1 in row k + 1 and in the last row, 0 elsewhere."""

    def __init__(self) -> None:
        self.draws = 0

    def __call__(self, like: Tensor) -> Tensor:
        self.draws += 1
        noise = torch.zeros_like(like)
        noise[[min(self.draws, len(like) - 1), -1]] = 1
        return noise


def _exact_moments(sampler: Any, mean: float, std: float) -> tuple[float, float] | None:
    """Mean and standard deviation of x at the end, on a Gaussian flow; None where the noise is not from `draw_noise`.

    x is affine in the starting noise and in every draw, so its responses to a 1 in each of them give both numbers. A
    row with a 1 in all of them checks that x is affine.
    """

    def final(rows: int, start: list[int]) -> tuple[Tensor, int]:
        noise, impulses = torch.zeros(rows, 1, 1, 1, dtype=torch.float64), _Impulses()
        noise[start] = 1
        return _run(sampler, noise, impulses, mean=mean, std=std).flatten(), impulses.draws

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
    noise = _noise(torch.float32, (64, 4, 32, 32))
    chance = 5 * STD / noise.numel() ** 0.5
    errors = []
    for count in (10, 40):
        x = _run(make(count), noise, torch.Generator().manual_seed(11))
        errors.append(max(abs(x.mean().item() - MEAN), abs(x.std().item() - STD)))
    allowed = errors[0] * 4 ** -(make(20).order - 0.5) + chance
    shown = f"errors of {errors[0]:.2g} at 10 and {errors[1]:.2g} at 40 steps"
    require(errors[1] <= allowed, f"weak order {make(20).order}, as claimed", shown)
    return math.log(errors[0] / errors[1], 4) if errors[1] > chance else math.nan
