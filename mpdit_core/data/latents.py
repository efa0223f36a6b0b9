"""Reading a folder of latents: memory-mapped shards, random access.

Shapes: n images, C latent channels, h × w latent pixels. `raw_latents` are what the autoencoder decodes; `latents`
[n, C, h, w] are a standardised draw from the posterior. A teacher's features are [n, N, F], N tokens row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpdit_core.data.autoencoders import read_stored
from mpdit_core.data.hash_check import HashCheck
from mpdit_core.data.manifest import (
    EncodingPlan,
    FeatureShard,
    LatentSpec,
    Manifest,
    Normalisation,
    Shard,
    TeacherFeatures,
    TeacherPlan,
    latent_spec,
    read_manifest,
)
from mpdit_core.data.shards import map_shard
from mpdit_core.data.standardising import standardise
from mpdit_core.data.tensor_file import damaged, missing, prefetch
from mpdit_core.errors import UserError

OPENED_AT_ONCE = 8  # shards


class LatentBatch(NamedTuple):
    """The posteriors of n images, on the CPU. Without a standard deviation, the mean is the latents themselves."""

    mean: Tensor  # [n, C, h, w] float32, raw
    std: Tensor | None  # [n, C, h, w] float32
    labels: Tensor  # [n] int64
    teacher: Tensor | None = None  # [n, N, F] float16, where features were asked for


class LatentFolder:
    """A finished folder of latents. Opening it reads the manifest and asks for the size of each shard.

    Shards are mapped when they are first read. Mapping a shard checks its size, shapes and labels. Its hash is compared
    in the background (`hashes`); a later `batch` raises the fault.

    Raises:
        UserError: the folder is missing, unfinished or damaged, or a shard is missing or its size has changed.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self.spec: LatentSpec = latent_spec(self.manifest, self.path)
        counts = [shard.count for shard in self.manifest.shards]
        self._firsts = np.cumsum([0, *counts[:-1]])  # number of the first image of each shard
        self.hashes = HashCheck()
        self._maps: dict[str, dict[str, np.ndarray]] = {}  # tensors by the name of their file
        self._require_sizes(self.manifest.shards)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def has_flips(self) -> bool:
        """Whether `batch` can give mirror images: stored ones, or those of a flip-equivariant autoencoder."""
        return self.manifest.plan.flip or self.spec.autoencoder.flip_equivariant

    @cached_property
    def teacher(self) -> TeacherFeatures:
        """The features that are stored beside the latents.

        Raises:
            UserError: there are none (`no-teacher`); one of their files is missing or its size has changed.
        """
        teacher = self.manifest.teacher
        if teacher is None:
            raise UserError(
                f"{self.path} holds no features of a teacher",
                code="no-teacher",
                expected="features stored beside the latents",
                remedy=f"mpdit encode-latents {self.spec.source} --out {self.path} --teacher NAME   (with the other "
                "options as before; the latents are not encoded again)",
            )
        self._require_sizes(teacher.shards)
        return teacher

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels of all images, int64 [n]; read once, 8 bytes per image."""
        numbers = range(len(self.manifest.shards))
        self._map_together(self.manifest, numbers)
        return np.concatenate([self.shard(number)["labels"] for number in numbers])

    def batch(
        self, indices: Sequence[int] | np.ndarray, *, flip: Sequence[bool] | None = None, teacher: bool = False
    ) -> LatentBatch:
        """The posteriors and labels of some images.

        Args:
            indices: numbers in 0..len-1, in any order, repeats allowed.
            flip: for each index, whether to give the mirror image; none by default.
            teacher: whether to give the teacher's features too, mirrored with the latents.

        Raises:
            UserError: there are no mirror images (`no-flips`) or no features (`no-teacher`) to give; a shard is damaged
                (`damaged-file`).
            IndexError: an index is out of range.
        """
        self.hashes.raise_fault()
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"indices {wanted.min()}..{wanted.max()} of {len(self)} images")
        mirrored = np.zeros(len(wanted), dtype=bool) if flip is None else np.asarray(flip, dtype=bool)
        if mirrored.any() and not self.has_flips:
            raise UserError(
                f"mirror images are requested, but {self.path} holds none",
                code="no-flips",
                remedy="--set train.flip=false, or encode again with --flip into another folder",
            )
        shards, rows = self.places(wanted)
        features = self._stored(self.teacher, shards, rows, mirrored) if teacher else None
        stored = self._stored(self.manifest, shards, rows, mirrored)
        labels = np.empty(len(wanted), dtype=np.int64)
        for number in np.unique(shards).tolist():
            here = np.flatnonzero(shards == number)
            labels[here] = self.shard(number)["labels"][rows[here]]
        mean, std = read_stored(stored, self.spec.autoencoder.stores)
        return LatentBatch(mean, std, torch.from_numpy(labels), features)

    def places(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the shard, row in it) for each of the images `wanted`."""
        shards = np.searchsorted(self._firsts, wanted, side="right") - 1
        return shards, wanted - self._firsts[shards]

    def shard(self, number: int) -> dict[str, np.ndarray]:
        """The tensors of one shard, mapped read-only: `labels` and those that `plan.tensor_names` lists."""
        return self._mapped(self.manifest, number)

    def _mapped(self, contents: Manifest | TeacherFeatures, number: int) -> dict[str, np.ndarray]:
        """The tensors of a file, which is mapped the first time; then its hash is compared."""
        shard = contents.shards[number]
        if shard.file not in self._maps:
            self._maps[shard.file] = map_shard(self.path / shard.file, contents.plan, shard)
            self.hashes.add(self.path / shard.file, shard.sha256)
        return self._maps[shard.file]

    def _stored(
        self, contents: Manifest | TeacherFeatures, shards: np.ndarray, rows: np.ndarray, mirrored: np.ndarray
    ) -> Tensor:
        """What is stored for n images, [n, *plan.stored_shape], or what would be for their mirror images."""
        plan = contents.plan
        from_flips = mirrored & plan.flip  # the images whose stored mirror image is read
        stored = np.empty((len(rows), *plan.stored_shape), plan.dtype)
        reads: list[tuple[np.ndarray, np.ndarray]] = []  # (tensor of a shard, positions of its images in the batch)
        numbers = np.unique(shards).tolist()
        self._map_together(contents, numbers)
        for number in numbers:
            here, tensors = shards == number, self._mapped(contents, number)
            chosen = (here & ~from_flips, here & from_flips)
            for name, images in zip(plan.tensor_names, chosen, strict=False):  # without stored flips only the first
                reads.append((tensors[name], np.flatnonzero(images)))
        for tensor, positions in reads:  # all are asked for before the first is copied
            prefetch(tensor, rows[positions])
        for tensor, positions in reads:
            stored[positions] = tensor[rows[positions]]
        found, to_mirror = torch.from_numpy(stored), torch.from_numpy(mirrored & ~from_flips)
        if to_mirror.any():
            found[to_mirror] = _mirror(found[to_mirror], plan)
        return found

    def _map_together(self, contents: Manifest | TeacherFeatures, numbers: Iterable[int]) -> None:
        """Maps these shards at the same time: on a cold disk, nearly all of the time is waiting."""
        unmapped = [number for number in numbers if contents.shards[number].file not in self._maps]
        if len(unmapped) > 1:
            with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
                list(pool.map(partial(self._mapped, contents), unmapped))

    def _require_sizes(self, shards: Iterable[Shard | FeatureShard]) -> None:
        def require_size(shard: Shard | FeatureShard) -> None:
            path = self.path / shard.file
            try:
                size = path.stat().st_size
            except OSError as error:
                raise missing(path) from error
            if size != shard.bytes:
                raise damaged(path, f"it has {size} bytes", f"{shard.bytes} bytes, as its manifest says")

        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            list(pool.map(require_size, shards))


def _mirror(stored: Tensor, plan: EncodingPlan | TeacherPlan) -> Tensor:
    """The mirror images of latents [n, C, h, w], or of features [n, N, F] with N tokens row by row."""
    if isinstance(plan, TeacherPlan):
        return stored.unflatten(1, plan.grid).flip(2).flatten(1, 2)
    return stored.flip(-1)


def draw_latents(batch: LatentBatch, noise: Tensor, normalisation: Normalisation) -> Tensor:
    """A standardised draw from the posterior, [n, C, h, w]; `noise` of the same shape is unused where `std` is None."""
    raw = batch.mean if batch.std is None else batch.mean + batch.std * noise
    return standardise(raw, normalisation)
