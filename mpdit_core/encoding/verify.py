"""`encode-latents --verify`: compares finished shards with the manifest, the source, the autoencoder, the teacher."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mpdit_core.api import Dataset, Item
from mpdit_core.data.autoencoders import LoadedAutoencoder, read_stored
from mpdit_core.data.images import prepare
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import FeatureShard, Manifest, Shard, read_manifest
from mpdit_core.data.shards import shard_fault
from mpdit_core.data.sources import HubStream
from mpdit_core.encoding.folder import EncodingFolder, ShardRecords
from mpdit_core.encoding.pipeline import encode_pictures, latents_encoder
from mpdit_core.encoding.reconstruction import pick_images
from mpdit_core.encoding.teacher.folder import TeacherFolder
from mpdit_core.encoding.teacher.projection import read_projection
from mpdit_core.encoding.teacher.teachers import LoadedTeacher
from mpdit_core.errors import UserError
from mpdit_core.reporting import Note, Progress, Reporter

SAMPLED = 16  # images that are encoded again
TOLERANCE = 1e-2  # relative to a channel's standard deviation, or to features: devices and batch sizes differ by less
FLOAT16_STEPS = 2**-9  # two steps of float16, relative


def verify(folder: EncodingFolder, source: Dataset | None, autoencoder: LoadedAutoencoder, *, report: Reporter) -> None:
    """Checks the finished folder, and renames bad shards, so that the next command without --verify rewrites them.

    Nothing is encoded again without a source, with a stream, or where shards are bad already.

    Raises:
        UserError: shards are bad (`damaged-shards`): which, and why.
    """
    manifest = read_manifest(folder.path)
    items = None if source is None or isinstance(source, HubStream) else source.items()
    bad: dict[int, list[str]] = {}
    for number, shard in enumerate(manifest.shards):
        labels = None if items is None else [items[n].label for n in _kept(shard, items)]
        fault = shard_fault(folder.path, manifest.plan, shard, labels)
        if fault:
            bad[number] = [fault]
        report(Progress(task="verify", done=number + 1, total=len(manifest.shards), unit="shards"))
    if source is not None and items is not None and not bad:
        report(Note(text=f"encoding up to {SAMPLED} of the images again, chosen at random"))
        bad = _encode_again(LatentFolder(folder.path), source, autoencoder)
    if bad:
        raise _damaged(folder, manifest.shards, bad)
    report(Note(text=f"verified: {len(manifest.shards)} shards, {manifest.count} images, no fault found"))


def verify_features(path: Path, teacher: LoadedTeacher | None, *, report: Reporter) -> None:
    """Checks the features beside latents that `verify` has checked, and renames bad shards as it does.

    Without the teacher, no feature is computed again.

    Raises:
        UserError: shards are bad (`damaged-shards`), or the projection (`damaged-file`).
    """
    latents, folder = LatentFolder(path), TeacherFolder(path)
    stored = latents.manifest.teacher
    if stored is None:
        return
    faults = [shard_fault(path, stored.plan, shard) for shard in stored.shards]
    bad = {number: [fault] for number, fault in enumerate(faults) if fault}
    projection = read_projection(folder.projection, stored.plan.projection) if stored.plan.projection else None
    if teacher and not bad:
        bad = _compute_again(latents, teacher, projection)
    if bad:
        raise _damaged(folder, stored.shards, bad)
    report(Note(text=f"verified: the features of {stored.plan.name}, no fault found"))


def _compute_again(
    latents: LatentFolder, teacher: LoadedTeacher, projection: torch.Tensor | None
) -> dict[int, list[str]]:
    """Faults by shard: random images whose stored features differ from those that the teacher gives now."""
    numbers, now = teacher.sample(latents, SAMPLED, seed=random.SystemRandom().getrandbits(32))
    if projection is not None:
        now = now @ projection
    stored = latents.batch(numbers, teacher=True).teacher
    assert stored is not None, "they were asked for"
    bad: dict[int, list[str]] = {}
    shards, _ = latents.places(np.array(numbers))
    for number, shard, before, after in zip(numbers, shards.tolist(), stored.float(), now, strict=True):
        gap = ((before - after).norm() / before.norm().clamp(min=1e-6)).item()
        if not gap <= TOLERANCE:
            fault = f"the features of image {number} differ by {gap:.2g} of their length from the stored ones"
            bad.setdefault(shard, []).append(fault)
    return bad


def _damaged(
    folder: ShardRecords, shards: Sequence[Shard] | Sequence[FeatureShard], bad: dict[int, list[str]]
) -> UserError:
    """Renames the bad shards; returns the error that names them."""
    for number in bad:
        folder.set_aside(shards[number])
    lines = [f"{shards[number].file}: {'; '.join(faults[:3])}" for number, faults in bad.items()]
    shown = [*lines[:20], *([f"and {len(lines) - 20} more"] if len(lines) > 20 else [])]
    return UserError(
        f"{len(bad)} of {len(shards)} shards in {folder.path} are damaged:\n    " + "\n    ".join(shown),
        code="damaged-shards",
        expected="shards that agree with the manifest, the source, the autoencoder and the teacher",
        remedy="run the same command without --verify: it writes these shards again and keeps the others",
    )


def _kept(shard: Shard, items: Sequence[Item]) -> list[int]:
    """The items of a shard that were not skipped, in the order of its rows."""
    skipped = {item.key for item in shard.skipped}
    return [n for n in range(shard.start, shard.stop) if items[n].key not in skipped]


def _encode_again(latents: LatentFolder, source: Dataset, autoencoder: LoadedAutoencoder) -> dict[int, list[str]]:
    """Faults by shard: random images whose stored latents differ from their encoding now."""
    manifest, plan = latents.manifest, latents.manifest.plan
    seed = random.SystemRandom().getrandbits(32)
    picks = pick_images(manifest, source, min(SAMPLED, len(latents)), seed=seed)
    numbers = [number for number, _, _ in picks]
    stored = [latents.batch(numbers, flip=[flip] * len(numbers)) for flip in (False, True)[: len(plan.tensor_names)]]
    shards, _ = latents.places(np.array(numbers))
    bad: dict[int, list[str]] = {}
    for row, (shard, (_, item, decode)) in enumerate(zip(shards.tolist(), picks, strict=True)):
        picture = prepare(decode(), plan.resolution, autoencoder.mode)
        encoded = encode_pictures(latents_encoder(autoencoder, plan), picture[None].copy())
        gap = max(
            _difference(before[row : row + 1], now, manifest)
            for batch, part in zip(stored, encoded, strict=True)
            for before, now in zip(batch[:2], read_stored(part.cpu(), plan.autoencoder.stores), strict=True)
            if before is not None and now is not None
        )
        if not gap <= TOLERANCE:
            fault = f"{item.key}: its latents differ by {gap:.2g} standard deviations from the stored ones"
            bad.setdefault(shard, []).append(fault)
    return bad


def _difference(before: torch.Tensor, now: torch.Tensor, manifest: Manifest) -> float:
    """Largest difference in units of the channel's standard deviation, beyond two steps of float16."""
    unit = torch.tensor(np.maximum(manifest.measured_std, 1e-6), dtype=torch.float32).view(1, -1, 1, 1)
    gap = (before - now).abs() - FLOAT16_STEPS * now.abs()
    return (gap / unit).max().item()
