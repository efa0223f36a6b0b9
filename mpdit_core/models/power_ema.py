"""Power-function averages of the weights of a run: their profiles, and how a sum of some approximates another.

After T steps the average of width sigma_rel weights the weights of step t by the profile
p(t) = (gamma + 1)·t^gamma / T^(gamma + 1), 0 < t <= T. sigma_rel is the standard deviation of p as a fraction of T, so
the average becomes longer as the run does. The profile of a weighted sum of averages is the same sum of their profiles:
a sum that approximates a profile approximates the average (EDM2, arXiv 2312.02696, section 3 and appendix C).

It needs neither torch nor files, and computes in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from mpdit_core.config import MAX_EMA_WIDTH

MAX_RESIDUAL = 0.1
"""For weights that scatter around a mean, the average then differs by a tenth of its own scatter."""

MAX_AMPLIFICATION = 4.0
"""Of the rounding of float16, which is about 2e-4 of the weights."""

PROBED = np.geomspace(0.002, MAX_EMA_WIDTH, 100).tolist()
"""Widths that are tried to find the range that some profiles can approximate."""


class Profile(NamedTuple):
    """The profile of the average of `width` after `step` steps."""

    width: float
    step: int

    @property
    def gamma(self) -> float:
        return gamma_of(self.width)


class Combination(NamedTuple):
    """A profile as the sum of `coefficients` times others; the coefficients sum up to 1."""

    coefficients: tuple[float, ...]
    residual: float  # norm of the difference from that profile, as a fraction of its norm
    amplification: float  # factor by which an error that all averages of a step share grows

    @property
    def is_close(self) -> bool:
        return self.residual <= MAX_RESIDUAL and self.amplification <= MAX_AMPLIFICATION


@cache
def gamma_of(width: float) -> float:
    """The exponent of a profile: the root of (gamma + 2)²·(gamma + 3)·width² = gamma + 1 that is >= 0."""
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def share_kept(width: float, step: int) -> float:
    """beta: the fraction of the average that step `step` (from 1) keeps, (1 - 1/step)^(gamma + 1) (section 3.1).

    In the average after T steps, the weights of step t then have the integral of p from t - 1 to t as their factor.
    """
    return (1 - 1 / step) ** (gamma_of(width) + 1)


def inner_products(first: Sequence[Profile], second: Sequence[Profile]) -> np.ndarray:
    """The integrals of the products of profiles over time, [len(first), len(second)]."""
    step_a, gamma_a = np.array([(p.step, p.gamma) for p in first], dtype=np.float64).T[:, :, None]
    step_b, gamma_b = np.array([(p.step, p.gamma) for p in second], dtype=np.float64).T
    shorter = np.minimum(step_a, step_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * shorter / (step_a * step_b)
    return scale * (shorter / step_a) ** gamma_a * (shorter / step_b) ** gamma_b


def combine(profiles: Sequence[Profile], wanted: Sequence[Profile]) -> list[Combination]:
    """For each of `wanted` the sum of `profiles` that is closest to it in L2 (least squares, appendix C.2).

    Unlike there, the coefficients sum up to 1, so that weights which did not change are reconstructed exactly.
    """
    products, right = inner_products(profiles, profiles), inner_products(profiles, wanted)
    solved = _solve(products, np.concatenate([right, np.ones((len(profiles), 1))], axis=1))
    free, ones = solved[:, :-1], solved[:, -1:]
    found = free + ones * (1 - free.sum(0)) / ones.sum()
    combinations = []
    for x, dot, profile in zip(found.T, right.T, wanted, strict=True):
        norm = inner_products([profile], [profile])[0, 0]
        difference = (x[:, None] * products * x).sum() - 2 * (x * dot).sum() + norm
        residual = math.sqrt(max(difference, 0.0) / norm)
        per_step: dict[int, float] = {}
        for (_, step), coefficient in zip(profiles, x.tolist(), strict=True):
            per_step[step] = per_step.get(step, 0.0) + coefficient
        combinations.append(Combination(tuple(x.tolist()), residual, math.hypot(*per_step.values())))
    return combinations


def widths_within(profiles: Sequence[Profile], step: int) -> tuple[float, float]:
    """The narrowest and the widest average after `step` steps that `profiles` can approximate.

    One of the profiles must be after `step` steps: its width is in the range.
    """
    probed = sorted({*PROBED, *(profile.width for profile in profiles)})
    found = combine(profiles, [Profile(width, step) for width in probed])
    good = [width for width, each in zip(probed, found, strict=True) if each.is_close]
    return good[0], good[-1]


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of a positive definite system, by Gauss's elimination.

    Its bits are the same for any number of threads, which LAPACK's are not: hashes of weights depend on them.
    """
    count = len(matrix)
    rows = np.concatenate([matrix, right], axis=1)
    for k in range(count):
        rows[k + 1 :, k:] -= (rows[k + 1 :, k] / rows[k, k])[:, None] * rows[k, k:]
    found = np.empty_like(right)
    for k in reversed(range(count)):
        found[k] = (rows[k, count:] - (rows[k, k + 1 : count, None] * found[k + 1 :]).sum(0)) / rows[k, k]
    return found
