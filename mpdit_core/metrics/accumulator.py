"""Everything that the metrics need, collected in one pass over the images in order of their index.

The fixed order makes the sums bit-equal after any interruption and for any number of processes. Features from several
processes must be put in order first, as mpdit_core/evaluation/collecting.py does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mpdit_core.metrics.scores import InceptionScore, Score
from mpdit_core.metrics.statistics import Gaussian, RunningStatistics
from mpdit_core.protocols import Features


@dataclass(frozen=True)
class _Sums:
    """The sums over the first `done` images."""

    done: int
    halves: tuple[RunningStatistics, RunningStatistics]  # of pool features, in two random halves of the images
    spatial: RunningStatistics | None
    logits: InceptionScore | None
    rows: Tensor  # [n, F] float32, pool features of the kept images


class FeatureAccumulator:
    """Collects the features of images 0 … count-1.

    Args:
        count: number of images.
        keep: indices of the images whose pool features are kept (for precision, recall, KID and the bootstrap).
        device: where the sums are computed.
    """

    def __init__(self, count: int, *, keep: Sequence[int] | range = (), device: torch.device | str = "cpu"):
        self.count, self.device = count, torch.device(device)
        self._keep = torch.zeros(count, dtype=torch.bool)
        self._keep[torch.as_tensor(list(keep), dtype=torch.int64)] = True
        self._sums: _Sums | None = None

    @property
    def done(self) -> int:
        """Number of images added."""
        return self._sums.done if self._sums else 0

    def add(self, features: Features) -> None:
        """Adds the features of the next n images: all of them, or none where it is interrupted.

        Raises:
            ValueError: more images than `count`, or features that are not finite.
        """
        n = len(features.pool)
        if self.done + n > self.count:
            raise ValueError(f"{self.done + n} images, where {self.count} were expected")
        indices = torch.arange(self.done, self.done + n)
        sums = self._sums or self._empty(features)
        place = features.pool.device
        first = (_random_bits(indices) == 0).to(place)
        self._sums = replace(
            sums,
            done=sums.done + n,
            halves=(sums.halves[0].plus(features.pool[first]), sums.halves[1].plus(features.pool[~first])),
            spatial=sums.spatial.plus(features.spatial) if sums.spatial and features.spatial is not None else None,
            logits=sums.logits.plus(indices, features.logits) if sums.logits and features.logits is not None else None,
            rows=torch.cat([sums.rows, features.pool[self._keep[indices].to(place)].float().cpu()]),
        )

    def gaussian(self) -> Gaussian:
        """The Gaussian of all pool features."""
        first, second = self._collected.halves
        return first.merged(second).gaussian()

    def half_gaussians(self) -> list[Gaussian]:
        """The Gaussians of two random halves of the images, to measure how a distance depends on their number."""
        return [half.gaussian() for half in self._collected.halves if half.count > 1]

    def spatial_gaussian(self) -> Gaussian | None:
        spatial = self._collected.spatial
        return spatial.gaussian() if spatial else None

    def inception_score(self) -> Score | None:
        logits = self._collected.logits
        return logits.score() if logits else None

    def kept_rows(self) -> Tensor:
        """Pool features of the kept images, [n, F] float32, in order of index."""
        return self._collected.rows

    def state(self) -> dict[str, Tensor]:
        """The sums as tensors on the CPU; empty before the first image."""
        if self._sums is None:
            return {}
        sums = self._sums
        parts = {"half-0": sums.halves[0], "half-1": sums.halves[1], "spatial": sums.spatial, "logits": sums.logits}
        tensors = {f"{name}.{key}": v for name, part in parts.items() if part for key, v in part.state().items()}
        return {"done": torch.tensor(sums.done), "rows": sums.rows, **tensors}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the sums by those in `state`."""
        if not state:
            self._sums = None
            return
        half_0, half_1, spatial, logits = (
            {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
            for name in ("half-0", "half-1", "spatial", "logits")
        )
        restored = partial(RunningStatistics.from_state, device=self.device)
        self._sums = _Sums(
            done=int(state["done"]),
            halves=(restored(half_0), restored(half_1)),
            spatial=restored(spatial) if spatial else None,
            logits=InceptionScore.from_state(logits) if logits else None,
            rows=state["rows"],
        )

    @property
    def _collected(self) -> _Sums:
        if self._sums is None or self._sums.done < self.count:
            raise ValueError(f"{self.done} of {self.count} images were measured")
        return self._sums

    def _empty(self, features: Features) -> _Sums:
        size, spatial, logits = features.pool.shape[1], features.spatial, features.logits
        half = RunningStatistics.empty(size, self.device)
        return _Sums(
            done=0,
            halves=(half, half),
            spatial=None if spatial is None else RunningStatistics.empty(spatial.shape[1], self.device),
            logits=None if logits is None else InceptionScore.empty(self.count, logits.shape[1]),
            rows=torch.empty(0, size),
        )


def _random_bits(indices: Tensor) -> Tensor:
    """A pseudo-random bit per index, always the same, and independent of classes that alternate (splitmix's mixer)."""
    x = indices.clone() + 0x1E3779B97F4A7C15
    x = (x ^ (x >> 30 & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return (x >> 40) & 1
