"""`encode-latents --verify`: every finished shard against the manifest, the source, and the autoencoder."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mpdit_core.api import Dataset
from mpdit_core.data.autoencoders import Autoencoder
from mpdit_core.data.images import prepare
from mpdit_core.data.latents import map_safetensors
from mpdit_core.data.manifest import Manifest, Shard, read_manifest
from mpdit_core.data.shards import check_shard
from mpdit_core.data.sources import Streamed
from mpdit_core.encoding.folder import EncodingFolder
from mpdit_core.encoding.pipeline import encode_batch
from mpdit_core.errors import UserError
from mpdit_core.reporting import Event, Note, Progress, Warn

SAMPLED = 16
TOLERANCE = 1e-2  # of a channel's standard deviation: more than devices and batch sizes differ by


def verify(folder: EncodingFolder, source: Dataset, autoencoder: Autoencoder) -> Iterator[Event]:
    """Checks the finished folder; bad shards are moved aside, for the next run to make anew.

    Raises:
        UserError: shards are bad, naming them and why.
    """
    manifest = read_manifest(folder.path)
    plan = manifest.plan
    all_labels = None if isinstance(source, Streamed) else [item.label for item in source.items()]
    bad: dict[int, list[str]] = {}
    for number, shard in enumerate(manifest.shards):
        faults = check_shard(folder.path, plan, shard, _labels_of(shard, source, all_labels))
        if faults:
            bad[number] = faults
        yield Progress(task="verify", done=number + 1, total=len(manifest.shards), unit="shards")
    if all_labels is not None:
        picks = sorted(random.SystemRandom().sample(range(plan.source.items), min(SAMPLED, plan.source.items)))
        yield Note(text=f"encoding {len(picks)} of the images again, chosen at random")
        for number, index, fault in _encode_again(picks, folder, manifest, source, autoencoder, bad):
            bad.setdefault(number, []).append(f"{source.items()[index].key}: {fault}")
    if manifest.count != sum(shard.count for shard in manifest.shards):
        yield Warn(text=f"the manifest counts {manifest.count} images, its shards another number")
    if not bad:
        yield Note(text=f"verified: {len(manifest.shards)} shards, {manifest.count} images, no fault found")
        return
    for number in bad:
        folder.discard(manifest.shards[number])
    lines = [f"{manifest.shards[number].file}: {'; '.join(faults[:3])}" for number, faults in bad.items()]
    shown = [*lines[:20], *([f"and {len(lines) - 20} more"] if len(lines) > 20 else [])]
    raise UserError(
        f"{len(bad)} of {len(manifest.shards)} shards in {folder.path} are bad:\n    " + "\n    ".join(shown),
        expected="what the manifest, the source and the autoencoder say",
        remedy="run the same command without --verify: it makes these shards anew and keeps the others",
    )


def _labels_of(shard: Shard, source: Dataset, labels: Sequence[int] | None) -> list[int] | None:
    if labels is None:
        return None
    skipped = {item.key for item in shard.skipped}
    items = source.items()
    return [labels[n] for n in range(shard.start, shard.stop) if not skipped or items[n].key not in skipped]


def _encode_again(
    picks: Sequence[int],
    folder: EncodingFolder,
    manifest: Manifest,
    source: Dataset,
    autoencoder: Autoencoder,
    bad: dict[int, list[str]],
) -> Iterator[tuple[int, int, str]]:
    """(shard, item, fault) for those of `picks` whose stored moments are not what they are encoded to now."""
    plan, items = manifest.plan, source.items()
    for index in picks:
        number = index // plan.shard_size
        shard = manifest.shards[number]
        skipped = {item.key for item in shard.skipped}
        if number in bad or items[index].key in skipped:
            continue
        row = sum(1 for n in range(shard.start, index) if items[n].key not in skipped)
        tensors = map_safetensors(folder.path / shard.file)
        image = np.stack([prepare(source.image(index), plan.resolution)])
        now, now_flipped = encode_batch(autoencoder, image, flip=plan.flip)
        difference = _difference(tensors["moments"][row], now, manifest)
        if now_flipped is not None:
            difference = max(difference, _difference(tensors["moments_flipped"][row], now_flipped, manifest))
        if not difference <= TOLERANCE:
            yield number, index, f"its moments differ by {difference:.2g} standard deviations from the stored ones"


def _difference(stored: np.ndarray, now: torch.Tensor, manifest: Manifest) -> float:
    """Largest difference in units of the channel's standard deviation, beyond two steps of float16."""
    values = now.float().cpu().numpy()[0]
    gap = np.abs(stored.astype(np.float32) - values) - 2**-9 * np.abs(values)
    std = np.array(manifest.measured_std * 2, dtype=np.float32).reshape(-1, 1, 1)
    return float((gap / np.maximum(std, 1e-6)).max(initial=0.0))
