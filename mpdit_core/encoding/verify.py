"""`encode-latents --verify`: compares finished shards with the manifest, the source, the autoencoder, the teacher.

Bad shards are renamed, so that the next command without --verify writes them again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mpdit_core.data.autoencoders import LoadedAutoencoder, read_stored
from mpdit_core.data.images import prepare
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import FeatureShard, Manifest, Shard, read_manifest
from mpdit_core.data.shards import shard_fault
from mpdit_core.data.sources import HubStream
from mpdit_core.encoding.folder import ShardRecords, TeacherFolder
from mpdit_core.encoding.pipeline import encode_pictures, latents_encoder
from mpdit_core.encoding.reconstruction import pick_images
from mpdit_core.encoding.setup import EncodeJob
from mpdit_core.encoding.teacher.teachers import LoadedTeacher
from mpdit_core.errors import UserError
from mpdit_core.protocols import Dataset
from mpdit_core.reporting import Note, Progress

SAMPLED = 16  # images that are encoded again
TOLERANCE = 1e-2  # relative to a channel's standard deviation, or to features: devices and batch sizes differ by less
FLOAT16_STEPS = 2**-9  # two steps of float16, relative


def verify_latents(job: EncodeJob) -> None:
    """Checks the finished folder. Nothing is encoded again without a source, with a stream, or where shards are bad.

    Raises:
        UserError: shards are bad (`damaged-shards`): which, and why.
    """
    path, source = job.folder.path, job.source
    manifest = read_manifest(path)
    items = None if source is None or isinstance(source, HubStream) else source.items()
    faults: list[tuple[int, str]] = []  # (number of the shard, fault)
    for number, shard in enumerate(manifest.shards):
        labels = None
        if items is not None:
            skipped = {item.key for item in shard.skipped}
            covered = (items[n] for n in range(shard.start, shard.stop))
            labels = [item.label for item in covered if item.key not in skipped]
        if fault := shard_fault(path, manifest.plan, shard, labels):
            faults.append((number, fault))
        job.report(Progress(task="verify", done=number + 1, total=len(manifest.shards), unit="shards"))
    if source is not None and items is not None and not faults:
        job.report(Note(text=f"encoding up to {SAMPLED} of the images again, chosen at random"))
        faults = list(_encode_again(LatentFolder(path), source, job.autoencoder))
    _refuse_bad(faults, job.folder, manifest.shards)
    job.report(Note(text=f"verified: {len(manifest.shards)} shards, {manifest.count} images, no fault found"))


def verify_features(job: EncodeJob) -> None:
    """Checks the features beside latents that are verified. Without the teacher, no feature is computed again.

    Raises:
        UserError: shards are bad (`damaged-shards`), or the projection (`damaged-file`).
    """
    latents, folder = LatentFolder(job.folder.path), TeacherFolder(job.folder.path)
    stored = latents.manifest.teacher
    if stored is None:
        return
    found = [shard_fault(folder.path, stored.plan, shard) for shard in stored.shards]
    faults = [(number, fault) for number, fault in enumerate(found) if fault]
    projection = folder.read_projection(stored.plan)
    if job.teacher and not faults:
        faults = list(_compute_again(latents, job.teacher, projection))
    _refuse_bad(faults, folder, stored.shards)
    job.report(Note(text=f"verified: the features of {stored.plan.name}, no fault found"))


def _refuse_bad(
    faults: Sequence[tuple[int, str]], folder: ShardRecords, shards: Sequence[Shard] | Sequence[FeatureShard]
) -> None:
    """Raises the error that names the bad shards, if there are any, and renames them, so that they are made again."""
    if not faults:
        return
    bad: dict[int, list[str]] = {}
    for number, fault in faults:
        bad.setdefault(number, []).append(fault)
    for number in bad:
        folder.set_aside(shards[number])
    lines = [f"{shards[number].file}: {'; '.join(faults[:3])}" for number, faults in bad.items()]
    shown = [*lines[:20], *([f"and {len(lines) - 20} more"] if len(lines) > 20 else [])]
    raise UserError(
        f"{len(bad)} of {len(shards)} shards in {folder.path} are damaged:\n    " + "\n    ".join(shown),
        code="damaged-shards",
        expected="shards that agree with the manifest, the source, the autoencoder and the teacher",
        remedy="run the same command without --verify: it writes these shards again and keeps the others",
    )


def _encode_again(latents: LatentFolder, source: Dataset, autoencoder: LoadedAutoencoder) -> Iterator[tuple[int, str]]:
    """Shards and faults of random images whose stored latents differ from their encoding now."""
    manifest, plan = latents.manifest, latents.manifest.plan
    seed = random.SystemRandom().getrandbits(32)
    picks = pick_images(manifest, source, min(SAMPLED, len(latents)), seed=seed)
    numbers = [number for number, _, _ in picks]
    stored = [latents.batch(numbers, flip=[flip] * len(numbers)) for flip in (False, True)[: len(plan.tensor_names)]]
    shards, _ = latents.places(np.array(numbers))
    encoder = latents_encoder(autoencoder, plan)
    for row, (shard, (_, item, decode)) in enumerate(zip(shards.tolist(), picks, strict=True)):
        picture = prepare(decode(), plan.resolution, autoencoder.mode)
        gap = max(
            _difference(before[row : row + 1], now, manifest)
            for batch, part in zip(stored, encode_pictures(encoder, picture[None].copy()), strict=True)
            for before, now in zip(batch[:2], read_stored(part.cpu(), plan.autoencoder.stores), strict=True)
            if before is not None and now is not None
        )
        if not gap <= TOLERANCE:
            yield shard, f"{item.key}: its latents differ by {gap:.2g} standard deviations from the stored ones"


def _difference(before: torch.Tensor, now: torch.Tensor, manifest: Manifest) -> float:
    """Largest difference in units of the channel's standard deviation, beyond two steps of float16."""
    unit = torch.tensor(np.maximum(manifest.measured_std, 1e-6), dtype=torch.float32).view(1, -1, 1, 1)
    gap = (before - now).abs() - FLOAT16_STEPS * now.abs()
    return (gap / unit).max().item()


def _compute_again(
    latents: LatentFolder, teacher: LoadedTeacher, projection: torch.Tensor | None
) -> Iterator[tuple[int, str]]:
    """Shards and faults of random images whose stored features differ from those that the teacher gives now."""
    numbers, now = teacher.sample(latents, SAMPLED, seed=random.SystemRandom().getrandbits(32))
    if projection is not None:
        now = now @ projection
    stored = latents.batch(numbers, teacher=True).teacher
    assert stored is not None, "they were asked for"
    shards, _ = latents.places(np.array(numbers))
    for number, shard, before, after in zip(numbers, shards.tolist(), stored.float(), now, strict=True):
        gap = ((before - after).norm() / before.norm().clamp(min=1e-6)).item()
        if not gap <= TOLERANCE:
            yield shard, f"the features of image {number} differ by {gap:.2g} of their length from the stored ones"
