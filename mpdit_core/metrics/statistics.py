"""Mean and covariance of a stream of feature vectors, in float64, mergeable over processes.

The sum of centred outer products is kept (Chan, Golub and LeVeque 1979, eq. 2.1), not that of raw ones, so features
with a large mean lose nothing. 2,048 features take 34 MB however many images pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpdit_core.runtime.distributed import World

ROWS_AT_ONCE = 512
"""Rows are taken up in groups of this size whatever the batch size was, so the sums do not depend on it."""


@dataclass(frozen=True)
class Gaussian:
    """`count` vectors of F features in a nutshell: `mean [F]` and unbiased `covariance [F, F]`, float64 on the CPU."""

    count: int
    mean: Tensor
    covariance: Tensor

    @property
    def size(self) -> int:
        return len(self.mean)


class RunningStatistics:
    """Collects rows of F features; `gaussian()` at the end.

    Args:
        size: F.
        device: where the sums live and are added up; a device without float64 (mps) is replaced by the CPU.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        device = torch.device(device)
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.size = size
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=self.device)
        self.scatter = torch.zeros(size, size, dtype=torch.float64, device=self.device)  # Σ (x - mean)(x - mean)ᵀ
        self._waiting: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Takes up `rows [n, F]`, any float type.

        Raises:
            ValueError: rows of another length, or with NaN or infinite values.
        """
        if rows.ndim != 2 or rows.shape[1] != self.size:
            raise ValueError(f"rows of shape {tuple(rows.shape)}, expected [n, {self.size}]")
        if not torch.isfinite(rows).all():
            raise ValueError("features contain NaN or infinite values")
        self._waiting.append(rows.detach().to(self.device))
        if sum(map(len, self._waiting)) >= ROWS_AT_ONCE:
            rows = torch.cat(self._waiting)
            whole = len(rows) // ROWS_AT_ONCE * ROWS_AT_ONCE
            for group in rows[:whole].split(ROWS_AT_ONCE):
                self._take(group)
            self._waiting = [rows[whole:].clone()]

    def merge(self, other: RunningStatistics) -> None:
        """Takes up everything `other` has seen; exact up to rounding."""
        self.settle()
        other.settle()
        self._combine(other.count, other.mean.to(self.device), other.scatter.to(self.device))

    def all_reduce(self, world: World) -> None:
        """Afterwards every process holds the statistics of all of them. Counts may differ, and be zero."""
        self.settle()
        sums = torch.cat([self.mean.new_tensor([self.count]), self.mean * self.count])
        world.all_reduce(sums)
        total = round(sums[0].item())
        mean = sums[1:] / max(total, 1)
        away = self.mean - mean
        self.scatter += self.count * torch.outer(away, away)
        world.all_reduce(self.scatter)
        self.count, self.mean = total, mean

    def settle(self) -> None:
        """Takes up the rows that wait for their group to fill."""
        rows = [r for r in self._waiting if len(r)]
        self._waiting = []
        if rows:
            self._take(torch.cat(rows))

    def gaussian(self) -> Gaussian:
        """Raises `ValueError` with fewer than two rows, which have no covariance."""
        self.settle()
        if self.count < 2:
            raise ValueError(f"{self.count} rows have no covariance")
        covariance = self.scatter / (self.count - 1)
        return Gaussian(self.count, self.mean.cpu().clone(), ((covariance + covariance.T) / 2).cpu())

    def state(self) -> dict[str, Tensor]:
        """What `load` needs to go on from here."""
        self.settle()
        count = torch.tensor(self.count, dtype=torch.int64)
        return {"count": count, "mean": self.mean.cpu(), "scatter": self.scatter.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        self._waiting = []
        self.count = int(state["count"])
        self.mean, self.scatter = state["mean"].to(self.device), state["scatter"].to(self.device)

    def _take(self, rows: Tensor) -> None:
        rows = rows.to(torch.float64)
        mean = rows.mean(dim=0)
        rows = rows - mean
        self._combine(len(rows), mean, rows.T @ rows)

    def _combine(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        away = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(away, away, alpha=self.count * count / total)
        self.mean = self.mean + away * (count / total)
        self.count = total


def statistics_of(rows: Tensor) -> Gaussian:
    """The Gaussian of all `rows [n, F]` at once. Raises `ValueError` as `RunningStatistics`."""
    running = RunningStatistics(rows.shape[1], rows.device)
    running.add(rows)
    return running.gaussian()
