"""`encode-latents --verify`: every finished shard against the manifest, the source, and the autoencoder."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from mpdit_core.api import Dataset, Item
from mpdit_core.data.autoencoders import LoadedAutoencoder, read_stored
from mpdit_core.data.images import prepare
from mpdit_core.data.manifest import Manifest, Shard, read_manifest
from mpdit_core.data.shards import check_shard, map_shard
from mpdit_core.data.sources import Streamed, read_items
from mpdit_core.encoding.folder import EncodingFolder
from mpdit_core.encoding.pipeline import encode_pictures
from mpdit_core.errors import UserError
from mpdit_core.reporting import Note, Progress, Reporter

SAMPLED = 16
TOLERANCE = 1e-2  # of a channel's standard deviation: more than devices and batch sizes differ by
FLOAT16_STEPS = 2**-9  # two steps of float16, relative


def verify(folder: EncodingFolder, source: Dataset | None, autoencoder: LoadedAutoencoder, *, report: Reporter) -> None:
    """Checks the finished folder; bad shards are set aside, so that the next run writes them again.

    Without a source, and with one that is a stream, nothing is encoded again.

    Raises:
        UserError: shards are bad (`damaged-shards`), naming them and why.
    """
    manifest = read_manifest(folder.path)
    items = None if source is None or isinstance(source, Streamed) else source.items()
    bad: dict[int, list[str]] = {}
    for number, shard in enumerate(manifest.shards):
        labels = None if items is None else [items[n].label for n in _kept(shard, items)]
        faults = check_shard(folder.path, manifest.plan, shard, labels)
        if faults:
            bad[number] = faults
        report(Progress(task="verify", done=number + 1, total=len(manifest.shards), unit="shards"))
    if source is not None and items is not None:
        picks = random.SystemRandom().sample(range(len(items)), min(SAMPLED, len(items)))
        report(Note(text=f"encoding {len(picks)} of the images again, chosen at random"))
        for number, index, fault in list(_encode_again(sorted(picks), folder, manifest, source, autoencoder, bad)):
            bad.setdefault(number, []).append(f"{items[index].key}: {fault}")
    if bad:
        raise _damaged(folder, manifest, bad)
    report(Note(text=f"verified: {len(manifest.shards)} shards, {manifest.count} images, no fault found"))


def _damaged(folder: EncodingFolder, manifest: Manifest, bad: dict[int, list[str]]) -> UserError:
    """Sets the bad shards aside, and says which they are."""
    for number in bad:
        folder.set_aside(manifest.shards[number])
    lines = [f"{manifest.shards[number].file}: {'; '.join(faults[:3])}" for number, faults in bad.items()]
    shown = [*lines[:20], *([f"and {len(lines) - 20} more"] if len(lines) > 20 else [])]
    return UserError(
        f"{len(bad)} of {len(manifest.shards)} shards in {folder.path} are damaged:\n    " + "\n    ".join(shown),
        code="damaged-shards",
        expected="shards that agree with the manifest, the source and the autoencoder",
        remedy="run the same command without --verify: it writes these shards again and keeps the others",
    )


def _kept(shard: Shard, items: Sequence[Item]) -> list[int]:
    """The items of a shard that were not skipped, in the order of its rows."""
    skipped = {item.key for item in shard.skipped}
    return [n for n in range(shard.start, shard.stop) if items[n].key not in skipped]


def _encode_again(
    picks: Sequence[int],
    folder: EncodingFolder,
    manifest: Manifest,
    source: Dataset,
    autoencoder: LoadedAutoencoder,
    bad: Collection[int],
) -> Iterator[tuple[int, int, str]]:
    """(shard, item, fault) for those of `picks` whose stored latents are not what they are encoded to now."""
    plan = manifest.plan
    for index in picks:
        number = index // plan.shard_size
        kept = [] if number in bad else _kept(manifest.shards[number], source.items())
        if index not in kept:
            continue
        shard = manifest.shards[number]
        tensors = map_shard(folder.path / shard.file, plan, shard)
        _, decode = next(read_items(source, index, index + 1))
        picture = prepare(decode(), plan.resolution, autoencoder.mode)
        encoded = encode_pictures(autoencoder, picture[None].copy(), flip=plan.flip)
        stored = [torch.from_numpy(tensors[name][kept.index(index)][None].copy()) for name in plan.tensor_names]
        gap = max(_difference(a, b.cpu(), manifest) for a, b in zip(stored, encoded, strict=True))
        if not gap <= TOLERANCE:
            yield number, index, f"its latents differ by {gap:.2g} standard deviations from the stored ones"


def _difference(stored: torch.Tensor, now: torch.Tensor, manifest: Manifest) -> float:
    """Largest difference in units of the channel's standard deviation, beyond two steps of float16."""
    stores = manifest.plan.autoencoder.stores
    unit = torch.tensor(np.maximum(manifest.measured_std, 1e-6), dtype=torch.float32).view(1, -1, 1, 1)
    largest = 0.0
    for before, after in zip(read_stored(stored, stores), read_stored(now, stores), strict=True):
        if before is not None and after is not None:
            gap = (before - after).abs() - FLOAT16_STEPS * after.abs()
            largest = max(largest, (gap / unit).max().item())
    return largest
