"""Fréchet distance, Inception Score and kernel distance, computed from features.

Precision and recall are in `neighbours.py`. Symbols: N rows, F features, K classes of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from mpdit_core.metrics.statistics import Gaussian

IS_CHUNK = 5000
"""Images per chunk of the Inception Score, as OpenAI's ADM evaluator cuts them (its `batch_size=5000`)."""

KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 2020
"""torch-fidelity's values, so that its numbers can be repeated."""


def frechet_distance(a: Gaussian, b: Gaussian, *, rows_a: Tensor | None = None, rows_b: Tensor | None = None) -> float:
    """`|mean_a - mean_b|² + tr(Sa + Sb - 2 (Sa Sb)^½)` (Heusel et al. 2017, eq. 6).

    The last trace is computed without a matrix square root, as the sum of the square roots of the eigenvalues of the
    symmetric `Raᵀ Sb Ra` with `Sa = Ra Raᵀ`: several times faster, and never complex. If rows are given, and are fewer
    than the features, `Ra` are the centred rows themselves; if that holds for both, the trace is the nuclear norm of
    `Raᵀ Rb`, exact up to rounding.

    Args:
        rows_a: the rows [N, F] that `a` was computed from, if they are available.
        rows_b: those of `b`.

    Raises:
        ValueError: `a` and `b` have different numbers of features.
    """
    if a.size != b.size:
        raise ValueError(f"{a.size} against {b.size} features")
    difference = a.mean - b.mean
    traces = torch.trace(a.covariance) + torch.trace(b.covariance) - 2 * _trace_of_root(a, b, rows_a, rows_b)
    return float(difference @ difference + traces)


def _trace_of_root(a: Gaussian, b: Gaussian, rows_a: Tensor | None, rows_b: Tensor | None) -> Tensor:
    root_a, root_b = _root_from_rows(a, rows_a), _root_from_rows(b, rows_b)
    if root_a is not None and root_b is not None:
        return torch.linalg.svdvals(root_a.T @ root_b).sum()
    if root_a is None and (root_b is not None or b.count < a.count):
        a, b, root_a = b, a, root_b
    if root_a is None:  # the one with fewer rows has the smaller rank: its null space is left out
        root_a = _covariance_root(a)
    product = root_a.T @ b.covariance @ root_a
    return _sum_of_roots((product + product.T) / 2)


def _root_from_rows(gaussian: Gaussian, rows: Tensor | None) -> Tensor | None:
    """R [F, N] with covariance = R Rᵀ, where it is smaller than the covariance."""
    if rows is None or len(rows) >= gaussian.size or len(rows) != gaussian.count:
        return None
    return (rows.to("cpu", torch.float64) - gaussian.mean).T / math.sqrt(gaussian.count - 1)


class Score(NamedTuple):
    """A score and its standard deviation over the parts of which it is the mean."""

    value: float
    std: float


@dataclass(frozen=True)
class InceptionScore:
    """exp of the mean KL divergence of p(class | image) from its mean over a chunk; averaged over chunks.

    Salimans et al. 2016, as ADM computes it: chunks of 5,000 images *contiguous by index*, weighted equally; the last
    has the remaining images. Image i belongs to chunk i // 5000. Immutable, like `RunningStatistics`.
    """

    chunk: int
    counts: Tensor  # [chunks] float64, number of images
    self_information: Tensor  # [chunks] float64, Σ_i Σ_k p log p
    probability: Tensor  # [chunks, K] float64, Σ_i p

    @classmethod
    def empty(cls, count: int, classes: int, *, chunk: int = IS_CHUNK) -> Self:
        """The sums over no image yet, for `count` images and K = `classes`."""
        probability = torch.zeros(math.ceil(count / chunk), classes, dtype=torch.float64)
        return cls(chunk, probability.new_zeros(len(probability)), probability.new_zeros(len(probability)), probability)

    def plus(self, indices: Tensor, logits: Tensor) -> Self:
        """The sums with `logits [B, K]` of the images `indices [B]` added; the softmax is computed in float64."""
        log_p = torch.log_softmax(logits.to("cpu", torch.float64), dim=1)
        p = log_p.exp()
        part = indices.cpu() // self.chunk
        return type(self)(
            self.chunk,
            self.counts.index_add(0, part, p.new_ones(len(part))),
            self.self_information.index_add(0, part, (p * log_p).sum(dim=1)),
            self.probability.index_add(0, part, p),
        )

    def score(self) -> Score:
        filled = self.counts > 0
        n = self.counts[filled]
        mean_p = self.probability[filled] / n[:, None]
        kl = self.self_information[filled] / n - torch.xlogy(mean_p, mean_p).sum(dim=1)
        scores = kl.exp()
        return Score(float(scores.mean()), float(scores.std(correction=0)))

    def state(self) -> dict[str, Tensor]:
        """The sums as tensors, which `from_state` reads."""
        return vars(self) | {"chunk": torch.tensor(self.chunk)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The sums that `state` returned."""
        return cls(**{**state, "chunk": int(state["chunk"])})


def kernel_distance(reference: Tensor, samples: Tensor) -> Score:
    """Unbiased squared MMD with the kernel `(x·y / F + 1)³` (Bińkowski et al. 2018), averaged over random subsets.

    100 subsets of 1,000 rows (all rows where there are fewer), in float64.

    Args:
        reference: [M, F].
        samples: [N, F].
    """
    size = min(KID_SUBSET_SIZE, len(reference), len(samples))
    draw = np.random.RandomState(KID_SEED)
    values = []
    for _ in range(KID_SUBSETS):
        x = samples[torch.from_numpy(draw.choice(len(samples), size, replace=False))].to("cpu", torch.float64)
        y = reference[torch.from_numpy(draw.choice(len(reference), size, replace=False))].to("cpu", torch.float64)
        values.append(float(_unbiased_mmd(x, y)))
        if size == len(reference) == len(samples):  # every subset is the whole set
            break
    return Score(float(np.mean(values)), float(np.std(values)))


def _unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (n * (n - 1))
    return within - 2 * xy.mean()


def bootstrap_std(reference: Gaussian, samples: Tensor, *, replicates: int) -> float:
    """Standard deviation of the Fréchet distance when `samples [N, F]` are drawn again with replacement.

    Only the standard deviation of the replicates can be used. Their percentiles lie above the value itself, because
    drawing again doubles the bias of a small sample.
    """
    draw = np.random.RandomState(0)
    rows = samples.to("cpu", torch.float64)
    root = _covariance_root(reference)
    values = []
    for _ in range(replicates):
        weight = torch.from_numpy(draw.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))).double()
        mean = weight @ rows / len(rows)
        centred = (rows - mean) * weight.sqrt()[:, None] / math.sqrt(len(rows) - 1)
        trace = centred.square().sum()
        cross = centred @ root  # its nuclear norm is tr (S_sample S_reference)^½
        product = cross.T @ cross if cross.shape[0] >= cross.shape[1] else cross @ cross.T
        root_trace = _sum_of_roots(product)
        difference = mean - reference.mean
        distance = difference @ difference + trace + torch.trace(reference.covariance) - 2 * root_trace
        values.append(float(distance))
    return float(np.std(values, ddof=1))


def _covariance_root(gaussian: Gaussian) -> Tensor:
    """R [F, rank] with R Rᵀ = covariance."""
    values, vectors = (torch.from_numpy(part) for part in np.linalg.eigh(gaussian.covariance.cpu().numpy()))
    positive = values > values[-1] * gaussian.size * torch.finfo(torch.float64).eps
    return vectors[:, positive] * values[positive].sqrt()


def _sum_of_roots(symmetric: Tensor) -> Tensor:
    """Sum of the square roots of the eigenvalues of `symmetric` [F, F], by NumPy, which is faster here than torch."""
    return torch.from_numpy(np.linalg.eigvalsh(symmetric.cpu().numpy())).clamp(min=0).sqrt().sum()
