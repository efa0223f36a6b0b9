"""`encode-latents`: from images to a folder of latents. See docs/data.md for what is stored, and why.

Every process encodes its share of the shards; rank 0 checks, finishes and reports. What a killed run finished is kept,
and the same command resumes from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from mpdit_core.api import Dataset
from mpdit_core.data.autoencoders import DEFAULT_AUTOENCODER, LoadedAutoencoder, is_plugin, load_autoencoder
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import MANIFEST, EncodingPlan, normalisation_of, read_manifest
from mpdit_core.data.shards import ShardContent, write_shard
from mpdit_core.data.sources import open_source, source_notes
from mpdit_core.encoding.folder import EncodingFolder
from mpdit_core.encoding.foreign_latents import find_foreign_latents, look_at, take_over
from mpdit_core.encoding.options import EncodeOptions, EncodeResult
from mpdit_core.encoding.pipeline import Encoded, encode_shards
from mpdit_core.encoding.plan import (
    DEFAULT_RESOLUTION,
    make_plan,
    output_folder,
    plan_take_over,
    source_arguments,
    what_is_encoded,
)
from mpdit_core.encoding.reconstruction import (
    SHEET,
    draw_decoded,
    inspect_reconstruction,
    read_reconstruction,
)
from mpdit_core.encoding.verify import verify
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.reporting import Note, Progress, Reporter, Saved, Skipped, Warning, silent
from mpdit_core.runtime import files
from mpdit_core.runtime.concurrency import WriteBehind, usable_cores
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.runtime.signals import StopRequest
from mpdit_core.size import Size

RFID_IMAGES = 50_000
SECONDS_BETWEEN_LOOKS = 0.1  # at the records of other processes


def encode_latents(options: EncodeOptions, *, report: Reporter = silent) -> EncodeResult:
    """Encodes what is not encoded yet, and returns what is to be known about the finished folder.

    Raises:
        UserError: found before the first image where it can be; see `EncodingFolder`, the sources and autoencoders.
        Interrupted: finished shards are kept.
    """
    device = select_device(options.device)
    with process_group(device) as world, ExitStack() as held:
        job = _open(options, device=device, world=world, report=report)
        unfinished = world.on_main(lambda: _hold(job, held))
        started = time.monotonic()
        if unfinished is None:
            _revisit(job)
        else:
            _encode(job, unfinished)
        encoded, seconds = job.count_items(unfinished or ()), time.monotonic() - started
        if world.is_main:
            _inspect(job, is_new=unfinished is not None)
        rfid = _measure_rfid(job) if options.reconstruction_fid else None
        return _result(LatentFolder(job.folder.path), encoded=encoded, seconds=seconds, rfid=rfid)


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """What one call of `encode_latents` works with, once everything is opened and settled.

    Args:
        source: the images; None where latents of another program are taken over.
        shards_of: the content of shards, one after the other, for a plan and their numbers.
    """

    options: EncodeOptions
    plan: EncodingPlan
    folder: EncodingFolder
    source: Dataset | None
    shards_of: Callable[[EncodingPlan, Sequence[int]], Iterator[Encoded]]
    autoencoder: LoadedAutoencoder
    world: World
    report: Reporter

    def unfinished_shards(self) -> list[int] | None:
        """Numbers of the shards to encode; None for a complete folder, and for one that is only to be checked."""
        if self.options.verify and self.folder.has_manifest:  # missing shards are reported then, not made
            return None
        done = self.folder.shards(self.plan)
        todo = [number for number in range(self.plan.num_shards) if number not in done]
        return None if not todo and self.folder.is_complete else todo

    def count_items(self, shards: Iterable[int]) -> int:
        """How many items of the source `shards` cover."""
        return sum(stop - start for start, stop in map(self.plan.shard_range, shards))

    def share(self, shards: Sequence[int]) -> Sequence[int]:
        """This process's part of `shards`."""
        rank, size = self.world.rank, self.world.size
        return shards[len(shards) * rank // size : len(shards) * (rank + 1) // size]


def _open(options: EncodeOptions, *, device: torch.device, world: World, report: Reporter) -> EncodeJob:
    """Opens everything, settles the plan, and refuses what cannot be done."""
    given = what_is_encoded(options)
    if options.from_latents:
        return _open_foreign(options, options.from_latents, device=device, world=world, report=report)
    source = open_source(given, split=options.split, **source_arguments(options))
    autoencoder = _load_autoencoder(options, source, device=device, world=world)
    own = getattr(source, "resolution", None)
    resolution = options.resolution or (Size.parse(own) if own else DEFAULT_RESOLUTION)
    autoencoder.check_resolution(resolution)
    folder = EncodingFolder(output_folder(options, resolution))
    report(Note(text=f"finding the images of {given}"))
    begun = folder.plan()
    plan = world.broadcast_object(make_plan(options, source, autoencoder, resolution=resolution, begun=begun))
    autoencoder.precision = plan.precision
    for note in source_notes(source):
        report(note)
    if ":" in plan.autoencoder.id and is_plugin(plan.autoencoder.id):
        text = (
            f"{plan.autoencoder.id} is not an installed plugin: `mpdit train` decodes these latents only with --trust"
        )
        report(Warning(code="autoencoder-not-installed", text=text))
    if (options.reference_stats or options.reconstruction_fid) and world.is_main:
        from mpdit_core.evaluation import check_features

        check_features("inception", device)
    if options.normalisation == "published":  # raises where it does not fit
        normalisation_of("published", (0.0,) * autoencoder.spec.channels, ())
    folder.check(plan)
    world.barrier()
    return EncodeJob(
        options=options,
        plan=plan,
        folder=folder,
        source=source,
        shards_of=partial(
            encode_shards,
            source,
            autoencoder=autoencoder,
            workers=options.workers or usable_cores(),
            skip_faulty=options.on_error == "skip",
        ),
        autoencoder=autoencoder,
        world=world,
        report=report,
    )


def _open_foreign(
    options: EncodeOptions, folder: Path, *, device: torch.device, world: World, report: Reporter
) -> EncodeJob:
    """As `_open`, for latents that another program made."""
    found = find_foreign_latents(folder)
    autoencoder = _load_autoencoder(options, None, device=device, world=world)
    holding = look_at(found, autoencoder.spec, scale=options.latents_scale)
    report(Note(text=holding.text))
    plan = plan_take_over(options, found, holding)
    output = EncodingFolder(output_folder(options, plan.resolution))
    output.check(plan)
    world.barrier()
    return EncodeJob(
        options=options,
        plan=plan,
        folder=output,
        source=None,
        shards_of=partial(take_over, found, holding, scale=options.latents_scale or 1.0),
        autoencoder=autoencoder,
        world=world,
        report=report,
    )


def _hold(job: EncodeJob, held: ExitStack) -> list[int] | None:
    """Holds the folder until `held` ends; returns the shards to encode, now that nobody else changes them."""
    _check_disk(job, job.unfinished_shards() or [])
    held.enter_context(job.folder.held())
    job.folder.check(job.plan)
    return job.unfinished_shards()


def _load_autoencoder(
    options: EncodeOptions, source: Dataset | None, *, device: torch.device, world: World
) -> LoadedAutoencoder:
    """One process at a time may download it: rank 0 goes first."""
    name = options.autoencoder or getattr(source, "autoencoder", None) or DEFAULT_AUTOENCODER
    if not world.is_main:
        world.barrier()
    mode = {"mode": options.mode} if options.mode else {}
    loaded = load_autoencoder(name, device=device, options=options.autoencoder_options | mode)
    if world.is_main:
        world.barrier()
    return loaded


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
    """What is made of the finished folder beside the latents, and `--verify`."""
    path, images = job.folder.path, job.options.reconstruction_images
    before = read_reconstruction(path)
    measured = before is not None and before.images == min(images, read_manifest(path).count)
    if job.source is None:
        draw_decoded(LatentFolder(path), job.autoencoder, report=job.report)
    elif is_new or not (path / SHEET).exists() or (images and not measured):
        inspect_reconstruction(LatentFolder(path), job.source, job.autoencoder, images=images, report=job.report)
    if job.options.reference_stats:
        _measure_reference(job)
    if job.options.verify:
        verify(job.folder, job.source, job.autoencoder, report=job.report)


def _measure_reference(job: EncodeJob) -> None:
    """Measures what eval-fid compares samples with; it is kept beside the latents."""
    from mpdit_core.evaluation import measure_reference, plan_reference
    from mpdit_core.metrics.features import build_extractor

    device = job.autoencoder.device
    extractor = build_extractor("inception")
    extractor.load(device)
    plan = plan_reference(str(job.folder.path), resolution=None, extractor=extractor, trust=_is_typed(job))
    measure_reference(plan, extractor, device=device, world=World(), report=job.report)
    job.report(Saved(what="reference statistics", path=job.folder.path))


def _measure_rfid(job: EncodeJob) -> float | None:
    """FID of decoded latents against the images, by `eval-fid`; None with other Inception weights than the published.

    Every process takes part. The record is in evals/ of the folder.
    """
    from mpdit_core.evaluation import EvaluateOptions, evaluate

    latents = str(job.folder.path)
    count = min(RFID_IMAGES, read_manifest(job.folder.path).count)
    options = EvaluateOptions(
        what=latents,
        reference=latents,
        num_samples=count,
        metrics=("fid",),
        out=job.folder.path / "evals",
        device=job.options.device,
        trust=_is_typed(job),
    )
    found = evaluate(options, report=job.report).metrics.get("fid")
    return found if isinstance(found, float) else None


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
