"""`encode-latents`: from images to a folder of latents. See docs/data.md for what is stored, and why so.

Every process encodes its share of the shards; rank 0 checks, finishes and reports. What a killed run finished is kept,
and the same command goes on from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mpdit_core import files
from mpdit_core.api import Dataset
from mpdit_core.config import parse_assignments
from mpdit_core.data.autoencoder import DEFAULT_AUTOENCODER, Autoencoder, PixelAutoencoder, load_autoencoder
from mpdit_core.data.encoding_folder import EncodingFolder, make_manifest
from mpdit_core.data.latents import MIRRORED_EXACTLY, LatentFolder
from mpdit_core.data.manifest import (
    MANIFEST,
    EncodingPlan,
    Shard,
    SourceSpec,
    measured_statistics,
    normalisation_of,
    read_manifest,
)
from mpdit_core.data.shards import ShardContent, write_shard
from mpdit_core.data.sources import count_items, open_source, source_given, source_name
from mpdit_core.distributed import World, joined
from mpdit_core.errors import UserError
from mpdit_core.events import Event, Note, Progress, Result, Saved, Skipped, Warn
from mpdit_core.jobs.encode_pipeline import encode_shards
from mpdit_core.jobs.encode_pixels import encode_pixels
from mpdit_core.jobs.encode_precision import choose_precision
from mpdit_core.jobs.encode_report import contact_sheet, summary
from mpdit_core.jobs.encode_verify import verify

DEFAULT_RESOLUTION = 256
SHARD_BYTES = 128 * 2**20
SHARD_ITEMS = 4096
SHARDS_AT_LEAST = 16  # of a small data set, so that several processes have something to share


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What the command line offers. None: chosen by the source, the resolution or the autoencoder."""

    source: str
    resolution: int | None = None
    autoencoder: str | None = None
    out: Path | None = None
    split: str | None = None
    classes: Path | None = None
    labels: Path | None = None
    streaming: bool = False
    assignments: tuple[str, ...] = ()
    batch_size: int | None = None
    shard_size: int | None = None
    workers: int | None = None
    flip: bool | None = None
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    normalisation: Literal["measured", "published"] | None = None
    on_error: Literal["fail", "skip"] = "fail"
    verify: bool = False
    reference_stats: bool = False


def encode(options: EncodeOptions, *, device: torch.device) -> Iterator[Event]:
    """Encodes what is not encoded yet, and reports on the finished folder.

    Raises:
        UserError: anything that cannot be, found before the first image where it can; see EncodingFolder and sources.
    """
    with joined(device) as world:
        source = open_source(options.source, split=options.split, **_open_options(options))
        autoencoder = _load_autoencoder(options, source, device=device, world=world)
        resolution = options.resolution or getattr(source, "resolution", None) or DEFAULT_RESOLUTION
        autoencoder.check_resolution(resolution)
        out = _out(options, resolution)
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
            yield from _encode(options, plan, folder, source=source, autoencoder=autoencoder, world=world)
        finally:
            folder.close()


def _encode(
    options: EncodeOptions,
    plan: EncodingPlan,
    folder: EncodingFolder,
    *,
    source: Dataset,
    autoencoder: Autoencoder,
    world: World,
) -> Iterator[Event]:
    done = folder.shards(plan)
    checking_only = options.verify and folder.is_finished  # missing shards are reported then, not made
    todo = [] if checking_only else [number for number in range(plan.num_shards) if number not in done]
    unfinished = not checking_only and (bool(todo) or not folder.is_finished or folder.work.is_dir())
    if unfinished:
        _check_disk(folder.path, plan, todo)
        if world.is_main:
            folder.begin(plan)
        world.barrier()
        if world.is_main and todo:
            items = sum(stop - start for start, stop in map(plan.shard_range, todo))
            kept = f"; {len(done)} of {plan.num_shards} shards are there already" if done else ""
            yield Note(
                text=f"encoding {items:,} images at {plan.resolution} px with {plan.autoencoder.id} on "
                f"{autoencoder.device} into {folder.path}{kept}"
            )
    started = time.monotonic()
    share = todo[len(todo) * world.rank // world.size : len(todo) * (world.rank + 1) // world.size]
    encoded = 0
    for event in _encode_share(share, options, plan, folder, source=source, autoencoder=autoencoder, world=world):
        if isinstance(event, Progress):
            encoded = event.done
        yield event
    if not world.is_main:
        return
    yield from _wait_for_others(folder, plan, world=world) if unfinished else ()
    if todo:
        encoded = sum(stop - start for start, stop in map(plan.shard_range, todo))
    seconds = time.monotonic() - started
    yield from _finish(options, plan, folder, source=source, autoencoder=autoencoder, made=unfinished)
    if options.reference_stats:
        yield from _measure_reference(folder.path, autoencoder.device)
    if options.verify:
        yield from verify(folder, source, autoencoder)
    latents = LatentFolder(folder.path)
    yield summary(latents, encoded=encoded, seconds=seconds)
    yield Result(data=_result(latents, encoded=encoded, seconds=seconds))


def make_plan(options: EncodeOptions, source: Dataset, autoencoder: Autoencoder, *, resolution: int) -> EncodingPlan:
    """Settles every option that fixes bytes; no default depends on the machine or the number of processes."""
    count = count_items(source)
    if count == 0:
        raise UserError(f"{options.source} holds no images", expected="at least one image in a class folder")
    class_names = tuple(source.class_names())
    flip = options.flip if options.flip is not None else autoencoder.spec.id not in MIRRORED_EXACTLY
    batch_size = options.batch_size or max(1, min(256, 32 * 256**2 // resolution**2))
    plan = EncodingPlan(
        source=SourceSpec(
            given=source_given(options.source),
            name=source_name(options.source),
            split=options.split,
            options=_open_options(options),
            fingerprint=source.fingerprint(),
            items=count,
        ),
        resolution=resolution,
        autoencoder=autoencoder.spec,
        precision=choose_precision(options.precision, autoencoder, source, resolution=resolution),
        flip=flip,
        batch_size=batch_size,
        shard_size=options.shard_size or 1,
        class_names=class_names,
    )
    autoencoder.precision = plan.precision
    if options.shard_size:
        return plan
    fitting = min(SHARD_ITEMS, SHARD_BYTES // plan.bytes_per_image, -(-count // SHARDS_AT_LEAST))
    batches = max(1, round(fitting / batch_size))
    return plan.model_copy(update={"shard_size": batches * batch_size})


def _open_options(options: EncodeOptions) -> dict[str, Any]:
    """The further arguments of `open_source`, as the manifest keeps them to open the source again."""
    given: dict[str, Any] = {
        "classes": str(options.classes.expanduser().absolute()) if options.classes else None,
        "labels": str(options.labels.expanduser().absolute()) if options.labels else None,
        "streaming": options.streaming,
        "options": _dataset_options(options),
    }
    return {name: value for name, value in given.items() if value}


def _dataset_options(options: EncodeOptions) -> dict[str, Any]:
    """The fields of a data set plugin that `--set dataset.KEY=VALUE` sets."""
    tree = parse_assignments(options.assignments)
    unknown = sorted(tree.keys() - {"dataset"})
    values = tree.get("dataset", {})
    if unknown or not isinstance(values, dict):
        raise UserError(
            f"--set {unknown[0] if unknown else 'dataset'} is no setting of encode-latents",
            expected="--set dataset.KEY=VALUE, a field of a data set plugin",
        )
    return values


def _load_autoencoder(options: EncodeOptions, source: Dataset, *, device: torch.device, world: World) -> Autoencoder:
    """One process at a time may download it: rank 0 goes first."""
    name = options.autoencoder or getattr(source, "autoencoder", None) or DEFAULT_AUTOENCODER
    if not world.is_main:
        world.barrier()
    loaded = load_autoencoder(name, device=device)
    if world.is_main:
        world.barrier()
    return loaded


def _out(options: EncodeOptions, resolution: int) -> Path:
    name = source_name(options.source) + (f"-{options.split}" if options.split else "")
    out = options.out or Path("latents") / f"{name}-{resolution}"
    root = Path(options.source).expanduser()
    if root.is_dir() and out.absolute().is_relative_to(root.absolute()):
        raise UserError(
            f"the latents would lie in {out.absolute()}, within the source {root.absolute()}",
            expected="a place outside the images",
            remedy="--out DIR, or run the command from another folder",
        )
    return out


def _check_disk(out: Path, plan: EncodingPlan, todo: list[int]) -> None:
    need = sum(stop - start for start, stop in map(plan.shard_range, todo)) * plan.bytes_per_image
    free = files.free_bytes(out)
    if need > free:
        raise UserError(
            f"the latents need {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free where {out} lies",
            expected="enough room for all shards",
            remedy="free some space, choose another --out" + (", or --no-flip for half of it" if plan.flip else ""),
        )


def _encode_share(
    share: list[int],
    options: EncodeOptions,
    plan: EncodingPlan,
    folder: EncodingFolder,
    *,
    source: Dataset,
    autoencoder: Autoencoder,
    world: World,
) -> Iterator[Event]:
    """This process's shards. One shard is written while the next is encoded; all that were complete get written."""
    task = "encode" if world.size == 1 else f"encode (process 1 of {world.size})"
    total = sum(stop - start for start, stop in map(plan.shard_range, share))
    workers = options.workers or max(1, len(os.sched_getaffinity(0)) // _processes_here())
    parent, done = os.getppid(), 0
    written: Future[None] | None = None

    def write(content: ShardContent) -> None:
        folder.add(content.number, write_shard(folder.path, plan, content))
        content.release()

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            skip = options.on_error == "skip"
            if isinstance(autoencoder, PixelAutoencoder):
                steps = encode_pixels(source, plan, share, autoencoder=autoencoder, workers=workers, skip_faulty=skip)
            else:
                steps = encode_shards(source, plan, share, autoencoder=autoencoder, workers=workers, skip_faulty=skip)
            for step in steps:
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
            text=f"stopped: {finished} of {plan.num_shards} shards are finished and kept; the same command goes on"
        )
        raise


def _processes_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _wait_for_others(folder: EncodingFolder, plan: EncodingPlan, *, world: World) -> Iterator[Event]:
    """Until all shards are recorded. No collective call: these time out, and slow storage takes its time."""
    parent, told = os.getppid(), False
    while world.size > 1 and folder.count_records() < plan.num_shards:
        if not told:
            yield Note(text="waiting for the other processes")
            told = True
        if os.getppid() != parent:
            raise SystemExit("the launcher is gone")
        time.sleep(0.1)


def _finish(
    options: EncodeOptions,
    plan: EncodingPlan,
    folder: EncodingFolder,
    *,
    source: Dataset,
    autoencoder: Autoencoder,
    made: bool,
) -> Iterator[Event]:
    old = read_manifest(folder.path) if folder.is_finished else None
    if made:
        shards: dict[int, Shard] = folder.shards(plan)
        mean, std = measured_statistics(plan, [shards[number] for number in range(plan.num_shards)])
        if not sum(shard.count for shard in shards.values()):
            raise UserError("every image was skipped", remedy="see the reasons above")
        name = options.normalisation or ("published" if old and old.normalisation.name == "published" else "measured")
        norm = normalisation_of(name, mean, std)
        folder.finish(make_manifest(plan, shards, mean=mean, std=std, norm=norm))
    else:
        assert old is not None
        yield Note(text=f"{folder.path} is complete: nothing to encode")
        if options.normalisation and options.normalisation != old.normalisation.name:
            norm = normalisation_of(options.normalisation, old.measured_mean, old.measured_std)
            files.write_json(
                folder.path / MANIFEST, old.model_copy(update={"normalisation": norm}).model_dump(mode="json")
            )
            yield Warn(text=f"normalisation changed from {old.normalisation.name} to {norm.name}; the shards stay")
    if made or not (folder.path / "contact-sheet.png").exists():
        yield from contact_sheet(LatentFolder(folder.path), source, autoencoder)


def _check_reference(device: torch.device) -> None:
    """Raises `UserError` before any work when the feature extractor of `--reference-stats` cannot be had."""
    from mpdit_core.metrics.features import build_extractor

    build_extractor("inception").load(device)


def _measure_reference(folder: Path, device: torch.device) -> Iterator[Event]:
    """What eval-fid compares samples with, measured now and kept beside the latents."""
    from mpdit_core.metrics.features import build_extractor
    from mpdit_core.metrics.reference import measure_reference, plan_reference

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
