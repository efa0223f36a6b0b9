"""`encode-latents`: from images to a folder of latents. See docs/data.md for what is stored, and why so.

Every process encodes its share of the shards; rank 0 checks, finishes and reports. What a killed run finished is kept,
and the same command goes on from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpdit_core.api import Dataset
from mpdit_core.data.autoencoders import DEFAULT_AUTOENCODER, Autoencoder, PixelAutoencoder, load_autoencoder
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import (
    MANIFEST,
    EncodingPlan,
    measured_statistics,
    normalisation_of,
    read_manifest,
)
from mpdit_core.data.shards import ShardContent, write_shard
from mpdit_core.data.sources import open_source
from mpdit_core.encoding.folder import EncodingFolder, make_manifest
from mpdit_core.encoding.pipeline import Encoded, encode_shards
from mpdit_core.encoding.pixels import encode_pixels
from mpdit_core.encoding.plan import DEFAULT_RESOLUTION, EncodeOptions, make_plan, open_options, place_of
from mpdit_core.encoding.report import SHEET, contact_sheet, summary
from mpdit_core.encoding.verify import verify
from mpdit_core.errors import UserError
from mpdit_core.reporting import Event, Note, Progress, Result, Saved, Skipped, Warn
from mpdit_core.runtime import files
from mpdit_core.runtime.distributed import World, process_group


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one call of `encode` works with, once everything is opened and settled."""

    options: EncodeOptions
    plan: EncodingPlan
    folder: EncodingFolder
    source: Dataset
    autoencoder: Autoencoder
    world: World

    def items(self, shards: Iterable[int]) -> int:
        """How many items of the source `shards` cover."""
        return sum(stop - start for start, stop in map(self.plan.shard_range, shards))

    def share(self, shards: Sequence[int]) -> Sequence[int]:
        """This process's part of `shards`."""
        rank, size = self.world.rank, self.world.size
        return shards[len(shards) * rank // size : len(shards) * (rank + 1) // size]


def encode(options: EncodeOptions, *, device: torch.device) -> Iterator[Event]:
    """Encodes what is not encoded yet, and reports on the finished folder.

    Raises:
        UserError: anything that cannot be, found before the first image where it can; see EncodingFolder and sources.
    """
    with process_group(device) as world:
        source = open_source(options.source, split=options.split, **open_options(options))
        autoencoder = _load_autoencoder(options, source, device=device, world=world)
        resolution = options.resolution or getattr(source, "resolution", None) or DEFAULT_RESOLUTION
        autoencoder.check_resolution(resolution)
        out = place_of(options, resolution)
        yield Note(text=f"finding the images of {options.source}")
        plan = make_plan(options, source, autoencoder, resolution=resolution)
        for text in getattr(source, "notes", list)():
            yield Warn(text=text) if "class" in text else Note(text=text)
        if options.reference_stats and world.is_main:
            _check_reference(device)
        if options.normalisation == "published":
            normalisation_of("published", (0.0,) * autoencoder.spec.channels, ())
        folder = EncodingFolder(out)
        folder.check(plan)
        world.barrier()
        try:
            yield from _encode(
                Run(options=options, plan=plan, folder=folder, source=source, autoencoder=autoencoder, world=world)
            )
        finally:
            folder.close()


def _encode(run: Run) -> Iterator[Event]:
    options, plan, folder = run.options, run.plan, run.folder
    done = folder.shards(plan)
    checking_only = options.verify and folder.is_finished  # missing shards are reported then, not made
    todo = [] if checking_only else [number for number in range(plan.num_shards) if number not in done]
    unfinished = not checking_only and (bool(todo) or not folder.is_finished or folder.work.is_dir())
    if unfinished:
        yield from _begin(run, todo, finished=len(done))
    started = time.monotonic()
    yield from _encode_share(run, run.share(todo))
    if not run.world.is_main:
        return
    if unfinished:
        yield from _wait_for_others(run)
    encoded, seconds = run.items(todo), time.monotonic() - started
    if unfinished:
        _finish(run)
    else:
        yield from _revisit(run)
    if unfinished or not (folder.path / SHEET).exists():
        yield from contact_sheet(LatentFolder(folder.path), run.source, run.autoencoder)
    if options.reference_stats:
        yield from _measure_reference(folder.path, run.autoencoder.device)
    if options.verify:
        yield from verify(folder, run.source, run.autoencoder)
    latents = LatentFolder(folder.path)
    yield summary(latents, encoded=encoded, seconds=seconds)
    yield Result(data=_result(latents, encoded=encoded, seconds=seconds))


def _begin(run: Run, todo: list[int], *, finished: int) -> Iterator[Event]:
    plan, folder = run.plan, run.folder
    _check_disk(run, todo)
    if run.world.is_main:
        folder.begin(plan)
    run.world.barrier()
    if run.world.is_main and todo:
        kept = f"; {finished} of {plan.num_shards} shards are there already" if finished else ""
        yield Note(
            text=f"encoding {run.items(todo):,} images at {plan.resolution} px with {plan.autoencoder.id} on "
            f"{run.autoencoder.device} into {folder.path}{kept}"
        )


def _load_autoencoder(options: EncodeOptions, source: Dataset, *, device: torch.device, world: World) -> Autoencoder:
    """One process at a time may download it: rank 0 goes first."""
    name = options.autoencoder or getattr(source, "autoencoder", None) or DEFAULT_AUTOENCODER
    if not world.is_main:
        world.barrier()
    loaded = load_autoencoder(name, device=device)
    if world.is_main:
        world.barrier()
    return loaded


def _check_disk(run: Run, todo: list[int]) -> None:
    out, plan = run.folder.path, run.plan
    need = run.items(todo) * plan.bytes_per_image
    free = files.free_bytes(out)
    if need > free:
        raise UserError(
            f"the latents need {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free where {out} lies",
            expected="enough room for all shards",
            remedy="free some space, choose another --out" + (", or --no-flip for half of it" if plan.flip else ""),
        )


def _encode_share(run: Run, share: Sequence[int]) -> Iterator[Event]:
    """This process's shards. One shard is written while the next is encoded; all that were complete get written."""
    folder, world = run.folder, run.world
    task = "encode" if world.size == 1 else f"encode (process 1 of {world.size})"
    total, parent, done = run.items(share), os.getppid(), 0
    written: Future[None] | None = None

    def write(content: ShardContent) -> None:
        folder.add(content.number, write_shard(folder.path, run.plan, content))
        content.release()

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            for step in _steps(run, share):
                if world.size > 1 and os.getppid() != parent:
                    raise SystemExit(f"process {world.rank}: its launcher is gone")
                if step.content is not None:
                    if written is not None:
                        written.result()
                    written = writer.submit(write, step.content)
                done += step.images
                for item in step.skipped:
                    yield Skipped(path=item.key, reason=item.reason)
                yield Progress(task=task, done=done, total=total, unit="images")
            if written is not None:
                written.result()
    except BaseException as error:
        if isinstance(error, Exception | GeneratorExit):
            raise
        finished = folder.count_records()
        yield Warn(
            text=f"stopped: {finished} of {run.plan.num_shards} shards are finished and kept; the same command goes on"
        )
        raise


def _steps(run: Run, share: Sequence[int]) -> Iterator[Encoded]:
    workers = run.options.workers or max(1, len(os.sched_getaffinity(0)) // _processes_here())
    skip = run.options.on_error == "skip"
    if isinstance(run.autoencoder, PixelAutoencoder):
        return encode_pixels(
            run.source, run.plan, share, autoencoder=run.autoencoder, workers=workers, skip_faulty=skip
        )
    return encode_shards(run.source, run.plan, share, autoencoder=run.autoencoder, workers=workers, skip_faulty=skip)


def _processes_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _wait_for_others(run: Run) -> Iterator[Event]:
    """Until all shards are recorded. No collective call: these time out, and slow storage takes its time."""
    parent, told = os.getppid(), False
    while run.world.size > 1 and run.folder.count_records() < run.plan.num_shards:
        if not told:
            yield Note(text="waiting for the other processes")
            told = True
        if os.getppid() != parent:
            raise SystemExit("the launcher is gone")
        time.sleep(0.1)


def _finish(run: Run) -> None:
    """Writes the manifest of shards that are all there."""
    plan, folder = run.plan, run.folder
    old = read_manifest(folder.path) if folder.is_finished else None
    shards = folder.shards(plan)
    if not sum(shard.count for shard in shards.values()):
        raise UserError("every image was skipped", remedy="see the reasons above")
    mean, std = measured_statistics(plan, [shards[number] for number in range(plan.num_shards)])
    name = run.options.normalisation or ("published" if old and old.normalisation.name == "published" else "measured")
    folder.finish(make_manifest(plan, shards, mean=mean, std=std, norm=normalisation_of(name, mean, std)))


def _revisit(run: Run) -> Iterator[Event]:
    """A finished folder: nothing to encode, another normalisation at most."""
    path, wanted = run.folder.path, run.options.normalisation
    yield Note(text=f"{path} is complete: nothing to encode")
    old = read_manifest(path)
    if wanted and wanted != old.normalisation.name:
        norm = normalisation_of(wanted, old.measured_mean, old.measured_std)
        files.write_json(path / MANIFEST, old.model_copy(update={"normalisation": norm}).model_dump(mode="json"))
        yield Warn(text=f"normalisation changed from {old.normalisation.name} to {norm.name}; the shards stay")


def _check_reference(device: torch.device) -> None:
    """Raises `UserError` before any work when the feature extractor of `--reference-stats` cannot be had."""
    from mpdit_core.metrics.features import build_extractor

    build_extractor("inception").load(device)


def _measure_reference(folder: Path, device: torch.device) -> Iterator[Event]:
    """What eval-fid compares samples with, measured now and kept beside the latents."""
    from mpdit_core.evaluation.reference import measure_reference, plan_reference
    from mpdit_core.metrics.features import build_extractor

    extractor = build_extractor("inception")
    extractor.load(device)
    reference = plan_reference(str(folder), resolution=None, extractor=extractor)
    yield from measure_reference(reference, extractor, device=device, world=World())
    yield Saved(what="reference statistics", path=reference.cache)


def _result(latents: LatentFolder, *, encoded: int, seconds: float) -> dict[str, Any]:
    manifest = latents.manifest
    return {
        "latents": str(latents.path),
        "count": manifest.count,
        "classes": len(manifest.class_names),
        "resolution": manifest.plan.resolution,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "skipped": [item.model_dump() for item in manifest.skipped],
        "encoded_now": encoded,
        "seconds": seconds,
        "images_per_second": encoded / seconds if encoded and seconds > 0 else None,
        "measured_mean": list(manifest.measured_mean),
        "measured_std": list(manifest.measured_std),
        "normalisation": manifest.normalisation.name,
        "fingerprint": latents.spec.fingerprint,
    }
