"""`encode-latents`: from images to a folder of latents. See docs/data.md for what is stored, and why.

Every process encodes its share of the shards; rank 0 checks, finishes and reports. What a killed run finished is kept,
and the same command resumes from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack

from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import MANIFEST, normalisation_of, read_manifest
from mpdit_core.data.shards import ShardContent, write_shard
from mpdit_core.encoding.inception_figures import measure_rfid, write_reference
from mpdit_core.encoding.options import EncodeOptions, EncodeResult
from mpdit_core.encoding.reconstruction import (
    draw_decoded,
    inspect_reconstruction,
    is_inspected,
    read_reconstruction,
)
from mpdit_core.encoding.setup import EncodeJob, open_job
from mpdit_core.encoding.verify import verify
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.reporting import Note, Progress, Reporter, Skipped, Warning, silent
from mpdit_core.runtime import files
from mpdit_core.runtime.concurrency import WriteBehind
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import process_group
from mpdit_core.runtime.signals import StopRequest

SECONDS_BETWEEN_LOOKS = 0.1  # at the records of other processes


def encode_latents(options: EncodeOptions, *, report: Reporter = silent) -> EncodeResult:
    """Encodes what is not encoded yet, and returns what is to be known about the finished folder.

    Raises:
        UserError: found before the first image where it can be; see `EncodingFolder`, the sources and autoencoders.
        Interrupted: finished shards are kept.
    """
    device = select_device(options.device)
    with process_group(device) as world, ExitStack() as held:
        job = open_job(options, device=device, world=world, report=report)
        unfinished = world.on_main(lambda: _hold(job, held))
        started = time.monotonic()
        if unfinished is None:
            _revisit(job)
        else:
            _encode(job, unfinished)
        encoded, seconds = job.count_items(unfinished or ()), time.monotonic() - started
        if world.is_main:
            _inspect(job, is_new=unfinished is not None)
        rfid = _rfid(job) if options.reconstruction_fid else None
        return _result(LatentFolder(job.folder.path), encoded=encoded, seconds=seconds, rfid=rfid)


def _hold(job: EncodeJob, held: ExitStack) -> list[int] | None:
    """Holds the folder until `held` ends; returns the shards to encode, now that nobody else changes them."""
    _check_disk(job, job.unfinished_shards() or [])
    held.enter_context(job.folder.held())
    job.folder.check(job.plan)
    return job.unfinished_shards()


def _check_disk(job: EncodeJob, unfinished: list[int]) -> None:
    need, free = job.count_items(unfinished) * job.plan.bytes_per_image, files.free_bytes(job.folder.path)
    if need > free:
        raise UserError(
            f"the latents need {files.size_text(need)}, and {files.size_text(free)} are free for {job.folder.path}",
            code="disk-full",
            expected="enough space for all shards",
            remedy="free some space, choose another --out"
            + (", or --no-flip, which needs half of the space" if job.plan.flip else ""),
        )


def _encode(job: EncodeJob, unfinished: list[int]) -> None:
    """Encodes `unfinished` shards together with the other processes; rank 0 writes the manifest."""
    job.world.on_main(lambda: job.folder.prepare(job.plan))
    if unfinished:
        finished = job.plan.num_shards - len(unfinished)
        kept = f"; {finished} of {job.plan.num_shards} shards are already there" if finished else ""
        count = job.count_items(unfinished)
        what = f"encoding {count:,} images" if job.source else f"importing the latents of {count:,} images"
        text = (
            f"{what} at {job.plan.resolution} px with {job.plan.autoencoder.id} on {job.autoencoder.encode_device} "
            f"into {job.folder.path}{kept}"
        )
        job.report(Note(text=text))
    try:
        with StopRequest() as stop:
            _encode_share(job, job.share(unfinished), stop)
            _wait_for_others(job, stop)
    except (KeyboardInterrupt, Interrupted):
        text = f"stopped: {job.folder.count_records()} of {job.plan.num_shards} shards are finished and kept"
        job.report(Warning(code="stopped", text=text))
        raise
    if job.world.is_main:
        _finish(job)
    job.world.barrier()


def _encode_share(job: EncodeJob, shards: Sequence[int], stop: StopRequest) -> None:
    """This process's shards. One shard is written while the next is encoded; all that were complete get written.

    A signal takes effect after the batch under way.
    """
    world, total, done, launcher = job.world, job.count_items(shards), 0, os.getppid()
    task = "encode" if world.size == 1 else f"encode (process 1 of {world.size})"

    def write(content: ShardContent) -> None:
        job.folder.add(content.number, write_shard(job.folder.path, job.plan, content))

    with WriteBehind() as writer:
        for batch in job.shards_of(job.plan, shards):
            if world.size > 1 and os.getppid() != launcher:
                raise SystemExit(f"process {world.rank}: its launcher has ended")
            if batch.content is not None:
                writer.submit(write, batch.content)
            done += batch.items
            for item in batch.skipped:
                job.report(Skipped(path=item.key, reason=item.reason))
            job.report(Progress(task=task, done=done, total=total, unit="images"))
            stop.check()


def _wait_for_others(job: EncodeJob, stop: StopRequest) -> None:
    """Until all shards are recorded. No collective call: these time out, and slow storage takes its time."""
    launcher, told = os.getppid(), False
    while job.world.size > 1 and job.folder.count_records() < job.plan.num_shards and not job.folder.is_complete:
        if not told:
            job.report(Note(text="waiting for the other processes"))
            told = True
        if os.getppid() != launcher:
            raise SystemExit("the launcher has ended")
        stop.check()
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _finish(job: EncodeJob) -> None:
    """Writes the manifest; a repaired folder keeps its normalisation."""
    folder = job.folder
    was_published = folder.has_manifest and read_manifest(folder.path).normalisation.name == "published"
    name = job.options.normalisation or ("published" if was_published else "measured")
    folder.finish(job.plan, normalisation=name)


def _revisit(job: EncodeJob) -> None:
    """A complete folder: nothing to encode, another normalisation at most."""
    if not job.world.is_main:
        return
    path, wanted = job.folder.path, job.options.normalisation
    job.report(Note(text=f"{path} is complete: nothing to encode"))
    old = read_manifest(path)
    if wanted and wanted != old.normalisation.name:
        norm = normalisation_of(wanted, old.measured_mean, old.measured_std)
        files.write_json(path / MANIFEST, old.model_copy(update={"normalisation": norm}).model_dump(mode="json"))
        text = f"normalisation changed from {old.normalisation.name} to {norm.name}; the shards are unchanged"
        job.report(Warning(code="normalisation-changed", text=text))


def _inspect(job: EncodeJob, *, is_new: bool) -> None:
    """`--verify`, and what is made of the finished folder beside the latents."""
    path, images = job.folder.path, job.options.reconstruction_images
    if job.options.verify:
        verify(job.folder, job.source, job.autoencoder, report=job.report)
    latents = LatentFolder(path)
    if job.source is None:
        draw_decoded(latents, job.autoencoder, report=job.report)
    elif is_new or not is_inspected(latents, images=images):
        inspect_reconstruction(latents, job.source, job.autoencoder, images=images, report=job.report)
    if job.options.reference_stats:
        write_reference(path, device=job.autoencoder.device, trust=_is_typed(job), report=job.report)


def _rfid(job: EncodeJob) -> float | None:
    return measure_rfid(job.folder.path, job.options, trust=_is_typed(job), report=job.report)


def _is_typed(job: EncodeJob) -> bool:
    """Whether the source in the manifest is what was typed now, and may be code."""
    return read_manifest(job.folder.path).plan.source.given == job.plan.source.given


def _result(latents: LatentFolder, *, encoded: int, seconds: float, rfid: float | None) -> EncodeResult:
    manifest, norm = latents.manifest, latents.manifest.normalisation
    plan, figures = manifest.plan, read_reconstruction(latents.path)
    return EncodeResult(
        latents=latents.path,
        count=manifest.count,
        classes=len(manifest.class_names),
        resolution=plan.resolution,
        latent_shape=plan.latent_shape,
        autoencoder=plan.autoencoder.id,
        precision=plan.precision,
        stores=plan.autoencoder.stores,
        flips="stored" if plan.flip else "mirrored" if latents.has_flips else "none",
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        skipped=manifest.skipped,
        encoded_now=encoded,
        seconds=seconds,
        images_per_second=encoded / seconds if encoded and seconds > 0 else None,
        measured_mean=manifest.measured_mean,
        measured_std=manifest.measured_std,
        normalisation=norm.name,
        normalisation_mean=norm.mean,
        normalisation_std=norm.std,
        fingerprint=latents.spec.fingerprint,
        psnr=figures.psnr if figures else None,
        ssim=figures.ssim if figures else None,
        rfid=rfid,
    )
