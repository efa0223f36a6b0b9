"""Conformance checks that a plugin runs in its own tests; our own samplers pass the same ones.

    from mpdit_core.testing import check_sampler
    def test_my_sampler(): check_sampler(MySampler)

Each raises `ConformanceError` (an AssertionError) that says what was expected and what came.
"""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpdit_core.api import Dataset, FeatureExtractor, NoiseSource
from mpdit_core.plugins.loading import contract_problem
from mpdit_core.plugins.options import check_options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MEAN, STD = 0.4, 0.6  # of the Gaussian data of the exact flow
ORDER_FLOWS = ((MEAN, STD), (-0.7, 0.25), (1.0, 1.6))  # on a single one, leading errors may cancel by chance
SHAPE = (3, 2, 8, 8)
FLOOR = 2e-6  # errors below this are rounding: solvers may keep their times in float32


class ConformanceError(AssertionError):
    """A plugin does not keep its contract."""


@dataclass(frozen=True)
class SamplerReport:
    """What was measured: order of convergence (NaN where the error is rounding alone) and evaluations at 20 steps."""

    order: float
    nfe: int


def _require(condition: object, expected: str, got: object = "") -> None:
    if not condition:
        raise ConformanceError(f"expected {expected}" + (f", got {got}" if str(got) else ""))


# --- samplers -------------------------------------------------------------------------------------------------------


class GaussianFlow:
    """The flow whose data are normal with the same mean and deviation in every pixel. Everything is known exactly.

    x_t is normal with mean (1 - t)·mean and variance V = ((1 - t)·std)² + t²; the velocity is
    `-mean + (t - (1 - t)·std²) / V · (x_t - (1 - t)·mean)`, and the ODE takes noise z to `mean + std·z`.
    It checks what a sampler calls it with and counts the evaluations.
    """

    def __init__(self, like: Tensor, *, mean: float = MEAN, std: float = STD):
        self.like, self.mean, self.std, self.nfe = like, mean, std, 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.nfe += 1
        _require(x_t.shape == self.like.shape, f"velocity_fn called with x_t {tuple(self.like.shape)}", x_t.shape)
        _require(x_t.dtype == self.like.dtype, f"velocity_fn called with x_t {self.like.dtype}", x_t.dtype)
        _require(t.shape in ((1,), (len(x_t),)), "velocity_fn called with t [1] or [B]", tuple(t.shape))
        _require(((t >= -1e-6) & (t <= 1 + 1e-6)).all(), "t within 0 and 1", t)
        t = t.to(x_t.dtype).view(-1, 1, 1, 1)
        variance = ((1 - t) * self.std) ** 2 + t**2
        return -self.mean + (t - (1 - t) * self.std**2) / variance * (x_t - (1 - t) * self.mean)


def check_sampler(sampler: type, *, options: Mapping[str, Any] | None = None) -> SamplerReport:
    """Holds a sampler class to its contract on an exactly known flow.

    Checked: times fall and end at t = 0; shape, dtype (float32 and float64) and device are kept; `noise` is left alone;
    the same generators give the same images; an image does not depend on the others of its batch; a stochastic one
    uses the generator; the claimed order of convergence is reached (strong for ODEs, that of mean and deviation for
    stochastic ones). A sampler with `adaptive = True` takes as many steps as it likes and must be right to 1e-3.

    Args:
        sampler: the class.
        options: fields other than `num_steps`.
    """
    problem = contract_problem("samplers", sampler)
    _require(problem is None, "a sampler class", problem)
    make = _maker(sampler, options or {})
    nfe = _check_steps(make)
    _check_repeatable(make)
    order = _weak_order(make) if sampler.stochastic else _order(make)  # pyright: ignore[reportAttributeAccessIssue]
    return SamplerReport(order, nfe)


def _maker(sampler: type, options: Mapping[str, Any]):
    check_options(sampler, {"num_steps": 20, **options}, origin=sampler.__name__)
    return lambda num_steps: sampler(num_steps=num_steps, **options)


def _noise(dtype: Any, shape: tuple[int, ...] = SHAPE) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def _generators(count: int, offset: int = 0) -> list[torch.Generator]:
    import torch

    return [torch.Generator().manual_seed(100 + offset + i) for i in range(count)]


def _run(sampler: Any, noise: Tensor, generator: NoiseSource = None, *, mean: float = MEAN, std: float = STD) -> Tensor:
    """The last x of a run."""
    x_t = noise
    for step in sampler.steps(GaussianFlow(noise, mean=mean, std=std), noise, generator):
        x_t = step.x_t
    return x_t


def _check_steps(make: Any) -> int:
    import torch

    nfe = 0
    for dtype in (torch.float32, torch.float64):
        noise = _noise(dtype)
        before, flow, sampler = noise.clone(), GaussianFlow(noise), make(20)
        steps = list(sampler.steps(flow, noise, _generators(len(noise))))
        times = [step.t for step in steps]
        _require(steps, "at least one step")
        _require(times[-1] == 0, "the last step to have t == 0", times[-1])
        _require(times[0] < 1, "the first step to have t below 1 (it is the state after the step)", times[0])
        _require(all(a > b for a, b in itertools.pairwise(times)), "times that fall", times)
        if not getattr(sampler, "adaptive", False):
            _require(len(steps) <= 20, "no more than num_steps = 20 steps", len(steps))
        for step in steps:
            _require(step.x_t.shape == noise.shape, f"x_t {tuple(noise.shape)}", tuple(step.x_t.shape))
            _require(step.x_t.dtype == dtype, f"x_t to stay {dtype}", step.x_t.dtype)
            _require(step.x_t.device == noise.device, f"x_t to stay on {noise.device}", step.x_t.device)
            _require(torch.isfinite(step.x_t).all(), "finite x_t", f"NaN or infinity at t = {step.t}")
        _require(torch.equal(noise, before), "noise to be left as it is")
        nfe = flow.nfe
    return nfe


def _check_repeatable(make: Any) -> None:
    import torch

    noise = _noise(torch.float32)
    sampler = make(20)
    first = _run(sampler, noise, _generators(len(noise)))
    _require(torch.equal(first, _run(sampler, noise, _generators(len(noise)))), "a second run to give the same numbers")
    other = _run(sampler, noise, _generators(len(noise), offset=50))
    same = torch.equal(first, other)
    _require(same != sampler.stochastic, "other generators to matter if, and only if, the sampler is stochastic", same)
    alone = _run(make(20), noise[1:2].clone(), _generators(1, offset=1))
    tolerance = 1e-2 if getattr(sampler, "adaptive", False) else 1e-5
    gap = (alone[0] - first[1]).abs().max().item()
    _require(gap <= tolerance, "an image not to depend on the others of its batch", f"a difference of {gap:.2g}")
    if sampler.stochastic:
        one = [_run(sampler, noise, torch.Generator().manual_seed(7)) for _ in range(2)]
        _require(torch.equal(*one), "one generator for the batch to give the same numbers again")


def _order(make: Any) -> float:
    """Strong order, the lowest of several flows. NaN for an adaptive or an exact sampler."""
    measured = [_order_on(make, mean, std) for mean, std in ORDER_FLOWS]
    return min((m for m in measured if not math.isnan(m)), default=math.nan)


def _order_on(make: Any, mean: float, std: float) -> float:
    """How the largest error falls as steps double, at the most steps whose error is not yet rounding."""
    import torch

    noise = _noise(torch.float64)
    claimed, exact = make(20).order, mean + std * noise

    def error(count: int) -> float:
        return (_run(make(count), noise, mean=mean, std=std) - exact).abs().max().item()

    if getattr(make(20), "adaptive", False):
        _require(error(20) < 1e-3, "an adaptive sampler to be right to 1e-3", f"{error(20):.2g}")
        return math.nan
    counts = (5, 10, 20, 40, 80, 160)
    errors = [error(count) for count in counts]
    shown = ", ".join(f"{n}: {e:.1e}" for n, e in zip(counts, errors, strict=True))
    _require(errors[2] < 1, "mean and deviation of the data to be reached", f"errors by steps {shown}")
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors) if b > FLOOR]
    if not slopes:
        return math.nan
    _require(slopes[-1] >= claimed - 0.4, f"order {claimed}, as claimed", f"{slopes[-1]:.2f} (errors by steps {shown})")
    return slopes[-1]


def _weak_order(make: Any) -> float:
    """How the error of mean and deviation falls from 10 to 40 steps, beyond what chance explains."""
    import torch

    noise = _noise(torch.float32, (64, 4, 32, 32))
    chance = 5 * STD / noise.numel() ** 0.5
    errors = []
    for count in (10, 40):
        x = _run(make(count), noise, torch.Generator().manual_seed(11))
        errors.append(max(abs(x.mean().item() - MEAN), abs(x.std().item() - STD)))
    allowed = errors[0] * 4 ** -(make(20).order - 0.5) + chance
    shown = f"errors of {errors[0]:.2g} at 10 and {errors[1]:.2g} at 40 steps"
    _require(errors[1] <= allowed, f"weak order {make(20).order}, as claimed", shown)
    return math.log(errors[0] / errors[1], 4) if errors[1] > chance else math.nan


# --- data sets ------------------------------------------------------------------------------------------------------


def check_dataset(dataset: Dataset, *, pictures: int = 8) -> None:
    """Holds a data set to its contract: names, items, labels, pictures and fingerprint fixed and fitting together.

    Args:
        dataset: an instance over real or made-up data.
        pictures: how many are decoded, spread over the whole.
    """
    import numpy as np
    from PIL import Image

    problem = contract_problem("datasets", type(dataset))
    _require(problem is None, "a data set class", problem)
    names = dataset.class_names()
    _require(names and all(isinstance(n, str) and n for n in names), "class names, not empty", names)
    _require(len(set(names)) == len(names), "no class name twice", names)
    items = list(dataset.items())
    _require(items, "at least one item")
    for item in items:
        fits = isinstance(item.label, int) and 0 <= item.label < len(names)
        _require(fits, f"labels as int, 0 to {len(names) - 1}", f"{item.label!r} ({item.key})")
    _require(len({item.key for item in items}) == len(items), "no key twice", f"{len(items)} items")
    _require(list(dataset.items()) == items, "the same items in the same order every time")
    copy = pickle.loads(pickle.dumps(dataset))
    _require(list(copy.items()) == items, "the same items from a pickled copy (as worker processes get it)")
    _require(isinstance(dataset.fingerprint(), str) and dataset.fingerprint(), "a fingerprint, text")
    _require(copy.fingerprint() == dataset.fingerprint(), "the same fingerprint from a copy")
    count = min(pictures, len(items))
    for index in (round(i * (len(items) - 1) / max(count - 1, 1)) for i in range(count)):
        picture = dataset.image(index)
        _require(isinstance(picture, Image.Image), "a PIL image", type(picture).__name__)
        again = np.asarray(copy.image(index))
        _require(np.array_equal(np.asarray(picture), again), f"picture {index} to be the same every time")


# --- feature extractors ---------------------------------------------------------------------------------------------


def check_features(extractor: FeatureExtractor, *, side: int = 32, device: str = "cpu") -> None:
    """Holds an extractor to its contract: float32 `[B, F]`, finite, repeatable, row by row the same in any batch.

    Args:
        extractor: an instance, not loaded.
        side: of the pictures of chance it is given.
        device: to compute on.
    """
    import torch

    problem = contract_problem("features", type(extractor))
    _require(problem is None, "a feature extractor class", problem)
    _require(isinstance(extractor.name, str) and extractor.name, "a name", extractor.name)
    extractor.load(torch.device(device))
    images = torch.randint(0, 256, (5, 3, side, side), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    images[4] = images[4] // 4
    images = images.to(device)
    before = images.clone()
    whole = extractor(images)
    _require(torch.equal(images, before), "the images to be left as they are")
    with torch.autocast(device, dtype=torch.bfloat16):
        in_autocast = extractor(images)
    for kind in ("pool", "spatial", "logits"):
        rows = getattr(whole, kind)
        if kind != "pool" and rows is None:
            continue
        _require(isinstance(rows, torch.Tensor) and rows.ndim == 2 and len(rows) == 5, f"{kind} [B, …], 2-D", rows)
        _require(rows.dtype == torch.float32, f"{kind} in float32", rows.dtype)
        _require(not rows.requires_grad, f"{kind} without gradients")
        _require(torch.isfinite(rows).all(), f"{kind} finite")
        _require(torch.equal(rows, getattr(extractor(images), kind)), f"{kind} the same the second time")
        scale = rows.abs().max().item()
        alone = torch.cat([getattr(extractor(images[i : i + 1]), kind) for i in range(5)])
        for what, others in (("whatever the batch size", alone), ("under autocast", getattr(in_autocast, kind))):
            gap = (others.float() - rows).abs().max().item()
            _require(gap <= 1e-4 * max(scale, 1e-6), f"{kind} the same {what}", f"{gap:.2g} off, at up to {scale:.2g}")
    _require(not torch.allclose(whole.pool[0], whole.pool[4]), "other features for other images")
    _require(isinstance(extractor.fingerprint(), str) and extractor.fingerprint(), "a fingerprint, text")
    _require(extractor.fingerprint() == extractor.fingerprint(), "the same fingerprint every time")
