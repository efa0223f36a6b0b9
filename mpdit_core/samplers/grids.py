"""The times of a sampler: grids of `num_steps` intervals from t = 1 (noise) to t = 0 (data).

To add one: a function `(positions, sampler, values) -> times` below, and its name in `GRIDS` and `GridName`. Times must
decrease from 1 to 0. `positions` decrease evenly from 1 to 0; `values` is C·h·w, the number of values of an image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from mpdit_core.protocols import NoiseSource, Step, VelocityFn, option

GridName = Literal["uniform", "shifted", "cosine", "karras"]
DEFAULT_RHO = 7.0  # as in EDM


@dataclass(frozen=True, kw_only=True)
class FixedGridSampler:
    """The options that all samplers on a fixed grid share. An option that the grid does not use is refused."""

    order: ClassVar[int]
    stochastic: ClassVar[bool] = False

    num_steps: int = option(50, "intervals between t = 1 and t = 0", minimum=1)
    grid: GridName = option("uniform", "grid of times: uniform, shifted, cosine or karras")
    shift: float | None = option(None, "for grid=shifted; none: sqrt(C·h·w / 4096), 1 for 256-pixel latents", minimum=0)
    rho: float = option(DEFAULT_RHO, "for grid=karras, the exponent; larger: more steps close to the data", minimum=0)

    def __post_init__(self) -> None:
        if self.shift is not None and self.shift <= 0:
            raise ValueError(f"shift must be above 0, not {self.shift}")
        if self.rho <= 0:
            raise ValueError(f"rho must be above 0, not {self.rho}")
        if self.shift is not None and self.grid != "shifted":
            raise ValueError(f"shift applies to grid=shifted only, but the grid is {self.grid}")
        if self.rho != DEFAULT_RHO and self.grid != "karras":
            raise ValueError(f"rho applies to grid=karras only, but the grid is {self.grid}")

    def times(self, noise: Tensor) -> list[float]:
        """`num_steps + 1` times from 1 down to 0. `noise [B, C, h, w]` only gives the number of values per image."""
        positions = [1 - i / self.num_steps for i in range(self.num_steps + 1)]
        times = GRIDS[self.grid](positions, self, noise[0].numel() if len(noise) else 4096)
        return [1.0, *times[1:-1], 0.0]

    def intervals(self, noise: Tensor) -> Iterator[tuple[float, float]]:
        """The steps, each from a time `t` down to `s`; the step size `h = s - t` is negative."""
        return itertools.pairwise(self.times(noise))


@dataclass(frozen=True, kw_only=True)
class OneStepSampler(FixedGridSampler):
    """A sampler whose next state depends only on the current one."""

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        x_t = noise
        for t, s in self.intervals(noise):
            x_t = self.step(velocity_fn, x_t, t=t, s=s, generator=generator)
            yield Step(s, x_t)

    def step(self, velocity_fn: VelocityFn, x_t: Tensor, *, t: float, s: float, generator: NoiseSource) -> Tensor:
        """x at time `s` from `x_t` at time `t`."""
        raise NotImplementedError


def uniform(positions: list[float], sampler: FixedGridSampler, values: int) -> list[float]:
    """Equal intervals, as in the paper."""
    return positions


def shifted(positions: list[float], sampler: FixedGridSampler, values: int) -> list[float]:
    """More steps close to the noise, as larger images need: `t = a·u / (1 + (a - 1)·u)`.

    Source: Stable Diffusion 3 (arXiv 2403.03206), equation 23, `a = sqrt(m / n)`. n = 4096 is the number of values of
    the latents of a 256-pixel image.
    """
    a = math.sqrt(values / 4096) if sampler.shift is None else sampler.shift
    return [a * u / (1 + (a - 1) * u) for u in positions]


def cosine(positions: list[float], sampler: FixedGridSampler, values: int) -> list[float]:
    """The signal-to-noise ratios of an evenly spaced cosine schedule ("CosMap", arXiv 2403.03206, section 3.1)."""
    angles = [math.pi / 2 * u for u in positions]
    return [math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles]


def karras(positions: list[float], sampler: FixedGridSampler, values: int) -> list[float]:
    """EDM's grid (arXiv 2206.00364, equation 5; sigma from 80 to 0.002), with `t = sigma / (1 + sigma)`.

    Its last interval goes from 0.002 to 0, as in EDM.
    """
    largest, smallest = 80.0 ** (1 / sampler.rho), 0.002 ** (1 / sampler.rho)
    last = max(len(positions) - 2, 1)
    sigmas = [(largest + i / last * (smallest - largest)) ** sampler.rho for i in range(len(positions) - 1)]
    return [*[sigma / (1 + sigma) for sigma in sigmas], 0.0]


GRIDS: dict[str, Callable[[list[float], FixedGridSampler, int], list[float]]] = {
    "uniform": uniform,
    "shifted": shifted,
    "cosine": cosine,
    "karras": karras,
}
