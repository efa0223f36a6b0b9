"""One pass over images: everything the metrics need is collected as features stream by, and survives a kill.

`Tally` takes (indices, features) in any order, each index once. Its state goes to a folder from time to time: one
`segment` a process with sums and the indices they cover, and, where rows are wanted, files of them. A later process
reads all segments, whoever wrote them, and goes on with what is missing; so the number of processes may change.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mpdit_core.api import Features
from mpdit_core.metrics.scores import InceptionScore, Score
from mpdit_core.metrics.statistics import Gaussian, RunningStatistics
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.files import writing

METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
SECONDS_BETWEEN_SAVES = 60.0


class Tally:
    """Collects the features of images 0 … count-1.

    Args:
        keep: indices whose pool rows are kept (for precision, recall, KID, the bootstrap): all, or a subset.
        folder: where the state is saved; what an earlier process left there is taken up. None: nothing is saved.
    """

    def __init__(self, count: int, *, keep: Sequence[int] | range, device: torch.device, folder: Path | None):
        self.count, self.device, self.folder = count, device, folder
        self.keep = torch.zeros(count, dtype=torch.bool)
        self.keep[torch.as_tensor(list(keep), dtype=torch.int64)] = True
        self.halves: list[RunningStatistics] | None = None  # of pool features, in two random halves
        self.spatial: RunningStatistics | None = None
        self.logits: InceptionScore | None = None
        self.seen = torch.zeros(count, dtype=torch.bool)  # by this process
        self.rows: dict[int, Tensor] = {}  # not saved yet
        self.row_files: list[Path] = []
        self.name = uuid.uuid4().hex[:12]
        self.saved_at = time.monotonic()
        self.earlier: list[Path] = []
        self.done_before = torch.zeros(count, dtype=torch.bool)
        if folder is not None:
            self._find_earlier(folder)

    def todo(self, indices: Sequence[int]) -> list[int]:
        """Those of `indices` that no process has measured before."""
        return [i for i in indices if not self.done_before[i]]

    def add(self, indices: Sequence[int], features: Features) -> None:
        """Raises `ValueError` when an index comes twice."""
        index = torch.as_tensor(list(indices), dtype=torch.int64)
        if self.seen[index].any() or self.done_before[index].any():
            raise ValueError("an image was measured twice")
        self.seen[index] = True
        self._prepare(features)
        assert self.halves is not None
        side = _random_bits(index)
        for bit, statistics in enumerate(self.halves):
            statistics.add(features.pool[(side == bit).to(features.pool.device)])
        if features.spatial is not None and self.spatial is not None:
            self.spatial.add(features.spatial)
        if features.logits is not None and self.logits is not None:
            self.logits.add(index, features.logits)
        wanted = self.keep[index]
        if wanted.any():
            pool = features.pool.float().cpu()
            self.rows |= {int(i): pool[n].clone() for n, i in enumerate(index.tolist()) if wanted[n]}
        if self.folder is not None and time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Writes the state; a kill afterwards loses nothing."""
        if self.folder is None or self.halves is None:
            return
        if self.rows:
            path = self.folder / f"rows-{self.name}-{len(self.row_files):05d}.safetensors"
            index = sorted(self.rows)
            with writing(path) as temporary:
                rows = torch.stack([self.rows[i] for i in index])
                save_file({"indices": torch.tensor(index), "pool": rows}, temporary)
            self.row_files.append(path)
            self.rows = {}
        state = {"seen": self.seen.nonzero()[:, 0], "row_files": torch.tensor(len(self.row_files))}
        parts = {"half-0": self.halves[0], "half-1": self.halves[1], "spatial": self.spatial, "logits": self.logits}
        for name, part in parts.items():
            if part is not None:
                state |= {f"{name}.{key}": value.contiguous() for key, value in part.state().items()}
        with writing(self.folder / f"segment-{self.name}.safetensors") as temporary:
            save_file(state, temporary)
        self.saved_at = time.monotonic()

    def finish(self, world: World) -> None:
        """Merges all processes and earlier segments; afterwards every process can ask for the Gaussians.

        Each process saves its own part before they are summed, and nothing after: a sum of all on the disk beside the
        parts would count images twice when a kill comes late.

        Raises:
            ValueError: an image was not measured.
        """
        if world.size > 1:
            self.save()
        row_files = [file for files in world.gather_objects(self.row_files) for file in files]
        sizes = [s for s in world.gather_objects(self._sizes()) if s is not None]
        earlier = [load_file(path) for path in self.earlier] if world.is_main else []
        sizes += [_sizes_in(segment) for segment in earlier]
        sizes = world.broadcast_object(sizes)
        if self.halves is None and sizes:
            self._make(*sizes[0])
        if self.halves is None:
            raise ValueError("no image was measured")
        for segment in earlier:
            self._take_segment(segment)
        self.row_files = row_files + [file for path in self.earlier for file in _row_files_of(path)]
        for part in (*self.halves, self.spatial, self.logits):
            if part is not None:
                part.all_reduce(world)
        seen = world.all_reduce((self.seen | self.done_before).int().to(self.device)).cpu()
        if not bool((seen > 0).all()):
            raise ValueError(f"{int((seen == 0).sum())} of {self.count} images were not measured")

    def gaussian(self) -> Gaussian:
        """Of all pool features."""
        assert self.halves is not None
        both = RunningStatistics(self.halves[0].size, self.halves[0].device)
        for half in self.halves:
            both.merge(half)
        return both.gaussian()

    def half_gaussians(self) -> list[Gaussian]:
        """Of two random halves of the images, to see how a distance depends on their number."""
        assert self.halves is not None
        return [half.gaussian() for half in self.halves if half.count > 1]

    def spatial_gaussian(self) -> Gaussian | None:
        return self.spatial.gaussian() if self.spatial is not None else None

    def score_of_logits(self) -> Score | None:
        return self.logits.score() if self.logits is not None else None

    def kept_rows(self) -> Tensor:
        """[n, F] float32, in order of index."""
        rows = dict(self.rows)
        for path in self.row_files:
            stored = load_file(path)
            rows |= dict(zip(stored["indices"].tolist(), stored["pool"], strict=True))
        return torch.stack([rows[i] for i in sorted(rows)]) if rows else torch.empty(0, 0)

    def remove(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _prepare(self, features: Features) -> None:
        if self.halves is None:
            spatial, logits = (None if f is None else f.shape[1] for f in features[1:])
            self._make(features.pool.shape[1], spatial, logits)

    def _make(self, pool: int, spatial: int | None, classes: int | None) -> None:
        self.halves = [RunningStatistics(pool, self.device) for _ in range(2)]
        self.spatial = RunningStatistics(spatial, self.device) if spatial else None
        self.logits = InceptionScore(self.count, classes) if classes else None

    def _sizes(self) -> tuple[int, int | None, int | None] | None:
        if self.halves is None:
            return None
        classes = self.logits.probability.shape[1] if self.logits else None
        return self.halves[0].size, self.spatial.size if self.spatial else None, classes

    def _find_earlier(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("segment-*.safetensors")):
            try:
                seen = load_file(path)["seen"]
            except (SafetensorError, KeyError):
                continue
            if len(seen) and (seen.max() >= self.count or self.done_before[seen].any()):
                continue  # another job's, or written by a second process at the same time
            self.done_before[seen] = True
            self.earlier.append(path)

    def _take_segment(self, segment: dict[str, Tensor]) -> None:
        assert self.halves is not None
        for name, part in {"half-0": self.halves[0], "half-1": self.halves[1], "spatial": self.spatial}.items():
            if part is not None:
                other = RunningStatistics(part.size, part.device)
                other.load({key: segment[f"{name}.{key}"] for key in ("count", "mean", "scatter")})
                part.merge(other)
        if self.logits is not None:
            other_score = InceptionScore(self.count, self.logits.probability.shape[1])
            for key, value in other_score.state().items():
                value.copy_(segment[f"logits.{key}"])
            self.logits.merge(other_score)


def _row_files_of(segment: Path) -> list[Path]:
    """The files of rows that belong to a segment."""
    name, count = segment.stem.removeprefix("segment-"), int(load_file(segment)["row_files"])
    return [segment.with_name(f"rows-{name}-{n:05d}.safetensors") for n in range(count)]


def _sizes_in(segment: dict[str, Tensor]) -> tuple[int, int | None, int | None]:
    spatial = len(segment["spatial.mean"]) if "spatial.mean" in segment else None
    classes = segment["logits.probability"].shape[1] if "logits.probability" in segment else None
    return len(segment["half-0.mean"]), spatial, classes


def _random_bits(indices: Tensor) -> Tensor:
    """A fair coin for each index, always the same, that knows nothing of classes taken in turn (splitmix's mixer)."""
    x = indices.clone() + 0x1E3779B97F4A7C15
    x = (x ^ (x >> 30 & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return (x >> 40) & 1
