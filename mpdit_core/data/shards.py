"""Writing one shard of latents, and checking one that was written."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mpdit_core.data.latents import map_safetensors
from mpdit_core.data.manifest import EncodingPlan, Shard, SkippedItem, shard_name
from mpdit_core.errors import UserError
from mpdit_core.runtime.files import sha256, writing

CHUNK = 16  # images summed or checked at once, so that float64 copies stay small
BLOCK = 32 * 2**10  # bytes hashed and written at once, so that they are in the processor's cache the second time
SUMS_TOLERANCE = 1e-9  # relative; float64 sums in two orders were seen to differ by some 1e-14

Sums = tuple[tuple[float, ...], tuple[float, ...]]
"""Per channel, over images and pixels: of the mean, and of mean² + std²."""


@dataclass
class ShardContent:
    """What goes into a shard: moments float16 [n, 2C, h, w] (those of mirror images, if stored), labels int64 [n]."""

    number: int
    moments: np.ndarray
    flipped: np.ndarray | None
    labels: np.ndarray
    skipped: list[SkippedItem]
    sums: Sums | None = None  # as of `channel_sums`, where they are known already
    release: Callable[[], None] = lambda: None  # to be called when it is written


def write_shard(folder: Path, plan: EncodingPlan, content: ShardContent) -> Shard:
    """Writes the shard under its final name and returns what the manifest will say of it.

    Its bytes depend on the content alone.

    Raises:
        UserError: moments that are not finite, or no space, or no right to write.
    """
    arrays = [array for array in (content.moments, content.flipped) if array is not None]
    sum_mean, sum_square = content.sums or channel_sums(arrays)
    if not np.isfinite([*sum_mean, *sum_square]).all():
        raise UserError(
            f"the autoencoder {plan.autoencoder.id} gives moments that are not finite (shard {content.number})",
            expected="finite numbers within float16's range, ±65504",
            remedy="check its weights; a lower precision than float32 may overflow in it",
        )
    tensors = {"labels": content.labels.astype("<i8", copy=False), "moments": content.moments}
    if content.flipped is not None:
        tensors["moments_flipped"] = content.flipped
    path = folder / shard_name(content.number)
    with writing(path) as temporary:
        size, digest = write_safetensors(temporary, tensors)
    start, stop = plan.shard_range(content.number)
    return Shard(
        file=path.name,
        start=start,
        stop=stop,
        count=len(content.labels),
        bytes=size,
        sha256=digest,
        skipped=tuple(content.skipped),
        sum_mean=sum_mean,
        sum_square=sum_square,
    )


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> tuple[int, str]:
    """Writes int64 and float16 arrays as safetensors; returns the file's size and SHA-256.

    In place of the library's writer, which needs the whole file in memory once more, and again to hash it. Blocks of
    zeros, such as the spreads of `pixels`, become holes: they read as zeros, and take no time and no room on the disk.
    """
    names = {"int64": "I64", "float16": "F16"}
    header, offset = {}, 0
    for name, array in tensors.items():
        stop = offset + array.nbytes
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for part in (len(text).to_bytes(8, "little") + text, *tensors.values()):
            data = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else np.ascontiguousarray(part).reshape(-1)
            data = data.view(np.uint8)
            for start in range(0, len(data), BLOCK):
                block = data[start : start + BLOCK]
                digest.update(block.data)
                if block.any():
                    _write_all(file, block.data)
                else:
                    file.seek(len(block), os.SEEK_CUR)
        file.truncate(file.tell())  # it may end in a hole
        return file.tell(), digest.hexdigest()


def _write_all(file: io.FileIO, data: memoryview) -> None:
    """An unbuffered file may take less than it is given."""
    while data:
        data = data[file.write(data) :]


def channel_sums(arrays: Sequence[np.ndarray]) -> Sums:
    """Sums over images and pixels of all `arrays`, in float64, of mean and of mean² + std², per channel."""
    channels = arrays[0].shape[1] // 2
    mean_sum, square_sum = np.zeros(channels), np.zeros(channels)
    for moments in arrays:
        for start in range(0, len(moments), CHUNK):
            chunk = torch.from_numpy(np.array(moments[start : start + CHUNK]))  # torch converts float16 much faster
            for image in chunk:
                for c in range(channels):
                    mean = image[c].double().numpy().ravel()
                    mean_sum[c] += mean.sum()  # NumPy's sums: the same for any number of threads
                    square_sum[c] += np.square(mean).sum()
                if image[channels:].view(torch.int16).any():
                    spread = image[channels:].double().numpy().reshape(channels, -1)
                    square_sum += np.square(spread).sum(axis=1)
    return tuple(mean_sum.tolist()), tuple(square_sum.tolist())


def check_shard(folder: Path, plan: EncodingPlan, shard: Shard, labels: Sequence[int] | None) -> list[str]:
    """What is wrong with a written shard: nothing, or sentences.

    Args:
        labels: of the items it covers, in order and without skipped ones; None if they are not known.
    """
    path = folder / shard.file
    if not path.is_file():
        return ["the file is missing"]
    if path.stat().st_size != shard.bytes:
        return [f"{path.stat().st_size} bytes, the manifest says {shard.bytes}"]
    faults = []
    digest = sha256(path)
    if digest != shard.sha256:
        faults.append(f"its SHA-256 is {digest[:16]}…, the manifest says {shard.sha256[:16]}…")
    try:
        tensors = map_safetensors(path)
    except UserError as error:
        return [*faults, error.what]
    names = ["moments", "moments_flipped"] if plan.flip else ["moments"]
    if sorted(tensors) != sorted([*names, "labels"]):
        return [*faults, f"it holds {', '.join(sorted(tensors))}; expected {', '.join([*names, 'labels'])}"]
    for name in names:
        if tensors[name].shape != (shard.count, *plan.moments_shape):
            faults.append(f"{name} has shape {list(tensors[name].shape)}")
        elif not all(np.isfinite(tensors[name][s : s + CHUNK]).all() for s in range(0, shard.count, CHUNK)):
            faults.append(f"{name} holds values that are not finite")
    found = tensors["labels"]
    if len(found) != shard.count:
        faults.append(f"{len(found)} labels for {shard.count} images")
    elif len(found) and not (found.min() >= 0 and found.max() < len(plan.class_names)):
        faults.append(f"labels {found.min()} to {found.max()} for {len(plan.class_names)} classes")
    elif labels is not None and found.tolist() != list(labels):
        faults.append("its labels are not those of the source")
    if not faults and not same_sums(channel_sums([tensors[name] for name in names]), shard):
        faults.append("its statistics are not those in the manifest")
    return faults


def same_sums(sums: Sums, shard: Shard) -> bool:
    """Whether `sums` are the recorded ones but for the order in which numbers were added.

    Means may cancel out, so their difference is allowed to be as large as one of the squares' sum may be.
    """
    recorded = np.array([shard.sum_mean, shard.sum_square])
    difference = np.abs(np.array(sums) - recorded)
    return bool((difference <= SUMS_TOLERANCE * np.maximum(np.abs(recorded), recorded[1])).all())
