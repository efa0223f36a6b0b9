"""Mean and covariance of a stream of feature vectors, in float64.

The outer products are centred before they are summed (Chan, Golub and LeVeque 1979, eq. 2.1), so features with a large
mean lose no precision. 2,048 features take 34 MB for any number of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

ROWS_AT_ONCE = 512
"""Rows are added in groups of this size, which limits the memory of the centred copy."""


@dataclass(frozen=True)
class Gaussian:
    """The moments of `count` vectors: `mean [F]` and the unbiased `covariance [F, F]`, float64 on the CPU."""

    count: int
    mean: Tensor
    covariance: Tensor

    @property
    def size(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class RunningStatistics:
    """The sums over the rows so far. Immutable: adding rows gives new statistics, so an interruption leaves no part."""

    count: int
    mean: Tensor  # [F] float64
    scatter: Tensor  # [F, F] float64, Σ (x - mean)(x - mean)ᵀ

    @classmethod
    def empty(cls, size: int, device: torch.device | str = "cpu") -> Self:
        """Statistics of no rows.

        Args:
            size: number of features F.
            device: where the sums are computed and kept; instead of mps, which has no float64, the CPU.
        """
        device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        zeros = torch.zeros(size, size, dtype=torch.float64, device=device)
        return cls(0, zeros[0].clone(), zeros)

    @property
    def size(self) -> int:
        return len(self.mean)

    def plus(self, rows: Tensor) -> Self:
        """The statistics of the rows so far and of `rows [n, F]`, of any float type.

        Raises:
            ValueError: rows of another length, or with NaN or infinite values.
        """
        if rows.ndim != 2 or rows.shape[1] != self.size:
            raise ValueError(f"rows of shape {tuple(rows.shape)}, expected [n, {self.size}]")
        if not torch.isfinite(rows).all():
            raise ValueError("features contain NaN or infinite values")
        total = self
        for part in rows.detach().to(self.mean.device).split(ROWS_AT_ONCE):
            group = part.to(torch.float64)
            mean = group.mean(dim=0)
            centred = group - mean
            total = total.merged(type(self)(len(group), mean, centred.T @ centred))
        return total

    def merged(self, other: Self) -> Self:
        """The statistics of the rows of both together."""
        total = self.count + other.count
        if not other.count:
            return self
        difference = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter.addr_(difference, difference, alpha=self.count * other.count / total)
        return type(self)(total, self.mean + difference * (other.count / total), scatter)

    def gaussian(self) -> Gaussian:
        """Raises `ValueError` for fewer than two rows, which have no covariance."""
        if self.count < 2:
            raise ValueError(f"{self.count} rows have no covariance")
        covariance = self.scatter / (self.count - 1)
        return Gaussian(self.count, self.mean.cpu(), ((covariance + covariance.T) / 2).cpu())

    def state(self) -> dict[str, Tensor]:
        """The sums as tensors on the CPU, which `from_state` reads."""
        return {"count": torch.tensor(self.count), "mean": self.mean.cpu(), "scatter": self.scatter.cpu()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Self:
        """The statistics that `state` returned, on `device` as for `empty`."""
        place = cls.empty(1, device).mean.device
        return cls(int(state["count"]), state["mean"].to(place), state["scatter"].to(place))


def statistics_of(rows: Tensor) -> Gaussian:
    """The Gaussian of `rows [n, F]`. Raises `ValueError` as `RunningStatistics` does."""
    return RunningStatistics.empty(rows.shape[1], rows.device).plus(rows).gaussian()
