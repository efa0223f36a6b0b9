"""Writing one shard of latents, or of a teacher's features beside them, and checking one that was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpdit_core.data.manifest import (
    EncodingPlan,
    FeatureShard,
    Shard,
    SkippedItem,
    TeacherPlan,
    feature_shard_name,
    shard_name,
)
from mpdit_core.data.tensor_file import damaged, map_tensors, write_tensors
from mpdit_core.errors import UserError
from mpdit_core.runtime.files import sha256

CHUNK = 16  # images summed at once, so that copies in float64 stay small
CACHED = 256 * 2**10  # bytes of pixels summed at once, so that their squares fit into the processor's cache
SUMMED_EXACTLY = 2**16  # squares of 8-bit numbers whose sum fits into 32 bits
SUMS_TOLERANCE = 1e-9  # relative; float64 sums in two orders were seen to differ by some 1e-14

Sums = tuple[tuple[float, ...], tuple[float, ...]]
"""Sums over images and pixels, per channel: of the mean, and of mean² + std²."""


@dataclass
class ShardContent:
    """What goes into a shard: `tensors`, those that the plan's `tensor_names` lists, and labels int64 [n]."""

    number: int
    tensors: dict[str, np.ndarray]
    labels: np.ndarray
    skipped: list[SkippedItem]


def write_shard(folder: Path, plan: EncodingPlan, content: ShardContent) -> Shard:
    """Writes the shard under its final name and returns its record for the manifest. Equal content gives equal bytes.

    Raises:
        UserError: latents that are not finite (`not-finite`), or no space, or no right to write.
    """
    sum_mean, sum_square = channel_sums(content.tensors.values(), plan)
    if not np.isfinite([*sum_mean, *sum_square]).all():
        remedy = "check its weights; a lower precision than float32 may overflow in it"
        raise _not_finite(f"the autoencoder {plan.autoencoder.id} gives latents", content.number, remedy)
    file = shard_name(content.number)
    size, digest = write_tensors(folder / file, {"labels": content.labels} | content.tensors)
    start, stop = plan.shard_range(content.number)
    return Shard(
        file=file,
        start=start,
        stop=stop,
        count=len(content.labels),
        bytes=size,
        sha256=digest,
        skipped=tuple(content.skipped),
        sum_mean=sum_mean,
        sum_square=sum_square,
    )


def channel_sums(stored: Iterable[np.ndarray], plan: EncodingPlan) -> Sums:
    """Sums over images and pixels of the arrays `stored` [n, copies·C, h, w]: exact for pixels, else in float64."""
    sums = pixel_sums if plan.autoencoder.stores == "uint8" else float_sums
    channels = plan.autoencoder.channels
    total = np.sum([sums(array, channels) for array in stored], axis=0)  # [2, C]
    return tuple(total[0].tolist()), tuple(total[1].tolist())


def float_sums(stored: np.ndarray, channels: int) -> np.ndarray:
    """[2, C]: the sum of the first C channels, the means; and of the squares of all, means and standard deviations."""
    total = np.zeros((2, channels))
    for start in range(0, len(stored), CHUNK):
        values = stored[start : start + CHUNK].astype(np.float64)  # NumPy's sums: the same for any number of threads
        total[0] += values[:, :channels].sum(axis=(2, 3)).sum(axis=0)
        total[1] += np.square(values).sum(axis=(2, 3)).reshape(len(values), -1, channels).sum(axis=(0, 1))
    return total


def pixel_sums(stored: np.ndarray, channels: int) -> np.ndarray:
    """[2, C]: sums of x / 127.5 - 1, the value of a pixel x in 0..255, and of its square, from exact integers."""
    planes = stored.reshape(len(stored), channels, stored.shape[2] * stored.shape[3])
    images = max(1, CACHED // max(1, planes[:1].nbytes))
    first, second = np.zeros((2, channels), dtype=np.uint64)  # Σ x and Σ x²
    for start in range(0, len(planes), images):
        for column in range(0, planes.shape[2], SUMMED_EXACTLY):
            part = planes[start : start + images, :, column : column + SUMMED_EXACTLY]
            first += part.sum(axis=2, dtype=np.uint32).sum(axis=0, dtype=np.uint64)
            squares = np.square(part, dtype=np.uint16)
            second += squares.sum(axis=2, dtype=np.uint32).sum(axis=0, dtype=np.uint64)
    count = stored.size // channels
    mean = [int(a) / 127.5 - count for a in first]
    square = [int(b) / 127.5**2 - 2 * int(a) / 127.5 + count for a, b in zip(first, second, strict=True)]
    return np.array([mean, square])


def shard_fault(
    folder: Path,
    plan: EncodingPlan | TeacherPlan,
    shard: Shard | FeatureShard,
    labels: Sequence[int] | None = None,
) -> str | None:
    """What is wrong with a written shard of latents or features; None if nothing is.

    Args:
        labels: of the items that it covers, in order, without the skipped ones; None if they are not known.
    """
    path = folder / shard.file
    if not path.is_file():
        return "the file is missing"
    if path.stat().st_size != shard.bytes:
        return f"{path.stat().st_size} bytes, but the manifest says {shard.bytes}"
    digest = sha256(path)
    if digest != shard.sha256:
        return f"its SHA-256 is {digest[:16]}…, but the manifest says {shard.sha256[:16]}…"
    try:
        tensors = map_shard(path, plan, shard)
    except UserError as error:
        return error.what
    if labels is not None and tensors["labels"].tolist() != list(labels):
        return "its labels are not those of the source"
    if isinstance(plan, EncodingPlan) and isinstance(shard, Shard):
        sums = channel_sums([tensors[name] for name in plan.tensor_names], plan)
        return None if same_sums(sums, shard) else "its statistics are not those in the manifest"
    return None


def map_shard(path: Path, plan: EncodingPlan | TeacherPlan, shard: Shard | FeatureShard) -> dict[str, np.ndarray]:
    """The tensors of a shard, mapped read-only: those in `plan.tensor_names`, and for latents `labels` int64 [n].

    Raises:
        UserError: the file is not what the manifest says, its hash aside (`damaged-file`).
    """
    expected = dict.fromkeys(plan.tensor_names, ((shard.count, *plan.stored_shape), np.dtype(plan.dtype)))
    if isinstance(plan, EncodingPlan):
        expected["labels"] = ((shard.count,), np.dtype("<i8"))
    tensors = map_tensors(path)
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if found != expected:
        raise damaged(path, f"it holds {_listed(found)}", _listed(expected))
    if isinstance(plan, EncodingPlan) and len(labels := tensors["labels"]):
        low, high = labels.min(), labels.max()
        if low < 0 or high > plan.last_label:
            raise damaged(path, f"labels {low} to {high}", f"0 to {plan.last_label}")
    return tensors


def write_feature_shard(folder: Path, plan: TeacherPlan, content: ShardContent) -> FeatureShard:
    """Writes the features of a shard under their final name and returns their record for the manifest.

    Raises:
        UserError: features that are not finite (`not-finite`), or no space, or no right to write.
    """
    if not all(np.isfinite(array).all() for array in content.tensors.values()):
        raise _not_finite(f"the teacher {plan.name} gives features", content.number, "check its weights")
    file = feature_shard_name(content.number)
    size, digest = write_tensors(folder / file, content.tensors)
    return FeatureShard(file=file, count=len(content.labels), bytes=size, sha256=digest)


def _not_finite(what: str, number: int, remedy: str) -> UserError:
    return UserError(
        f"{what} that are not finite (shard {number})",
        code="not-finite",
        expected="finite numbers within float16's range, ±65504",
        remedy=remedy,
    )


def _listed(tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (shape, dtype) in tensors.items())


def same_sums(sums: Sums, shard: Shard) -> bool:
    """Whether `sums` equal the recorded ones, up to the order in which numbers were added; False if not finite.

    Positive and negative means may cancel, so their sum may differ by as much as the sum of the squares.
    """
    recorded = np.array([shard.sum_mean, shard.sum_square])
    difference = np.abs(np.array(sums) - recorded)
    return bool((difference <= SUMS_TOLERANCE * np.maximum(np.abs(recorded), recorded[1])).all())
