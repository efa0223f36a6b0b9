"""`mpdit sample`: images, latents or an npz from a model, as many as asked for, continued where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from PIL import Image

from mpdit_core import plugins
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.pictures import labelled_grid, save_png, square_columns
from mpdit_core.reporting import Note, Progress, Reporter, Saved, Warning, silent
from mpdit_core.runtime import files
from mpdit_core.runtime.concurrency import WriteBehind
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.runtime.locks import locked
from mpdit_core.runtime.signals import StopRequest
from mpdit_core.sampling.generator import Generator, SampleBatch, sampling_values
from mpdit_core.sampling.naming import model_name, newest, numbered
from mpdit_core.sampling.options import (
    PluginRecord,
    SampleOptions,
    SampleResult,
    SamplingCost,
    SamplingOptions,
    ViewResult,
    options_without_effect,
    warn_if_given,
)
from mpdit_core.sampling.sample_set import PROGRESS, RECORD, BlockMarkers, SampledModel, SampleSet
from mpdit_core.sampling.views import VIEWS
from mpdit_core.sampling.writers import WRITERS, Writer

DEFAULT_SAMPLES = 16
GRID_IMAGES = 60
GRID = "grid.png"


def sample(options: SampleOptions, *, report: Reporter = silent) -> SampleResult | ViewResult:
    """Generates the samples, or the picture that `options` ask for.

    In a group of processes each writes its share of the blocks, and all return the same result.

    Raises:
        UserError: anything `Generator` refuses, or a folder that holds something else; nothing is changed then. Later:
            a disk that is full or gone; finished blocks are kept.
        Interrupted: a signal came; finished blocks are kept, and the same call resumes.
    """
    for warning in _without_effect(options):
        report(warning)
    if options.pictures:
        return _view(options, report)
    device = select_device(options.device)
    with process_group(device) as world, ExitStack() as held:
        folder = open_model(options.model)
        _require_sampler_package(options, folder)
        generator = Generator(
            folder,
            options,
            device=device,
            num_samples=options.num_samples or DEFAULT_SAMPLES,
            decode=WRITERS[options.format].needs_images,
        )
        samples = world.on_main(lambda: _choose_set(generator, options))
        generator.types = samples.model.types
        writer = _writer(samples, generator)
        if samples.complete:
            if world.is_main:
                BlockMarkers(samples.path).remove()  # a kill came before that
            report(Note(text=f"{samples.path} is complete: nothing to do"))
            return _result(samples, writer)
        done = world.on_main(lambda: _begin(samples, held, generator, writer))
        report(Note(text=_beginning(samples, done, generator.num_blocks)))
        started = time.monotonic()
        _write_blocks(generator, writer, generator.blocks(world, done=done), world, report)
        new = sum(len(generator.block_indices(b)) for b in range(generator.num_blocks) if b not in done)
        rate = new / (time.monotonic() - started)
        finished = world.on_main(lambda: _finish(samples, generator, writer, rate=rate, report=report))
        return _result(finished, writer)


def _without_effect(options: SampleOptions) -> list[Warning]:
    """Warnings of options that change nothing."""
    found = options_without_effect(options, sweep=options.sweep)
    if options.nearest is None:
        found += warn_if_given(options, ["latents"], "it is the folder that nearest looks in")
    if options.format != "png" and not options.pictures:
        found += warn_if_given(options, ["by_class"], f"format {options.format} has no folders of classes")
    return found


def _view(options: SampleOptions, report: Reporter) -> ViewResult:
    """Raises `UserError` for two pictures at once, and for options that only a set of samples has."""
    name, *others = options.pictures
    if others:
        raise UserError(
            f"{name} and {others[0]} are pictures of their own", code="conflicting-options", expected="one at a time"
        )
    if options.format != "png" or options.by_class:
        extra = "by_class" if options.by_class else f"format {options.format}"
        raise UserError(
            f"{extra} with {name}", code="conflicting-options", expected="a set of samples, for this option"
        )
    return VIEWS[name](options, report=report)


def _require_sampler_package(options: SampleOptions, folder: ModelFolder) -> None:
    """Raises `UserError` naming the package of an unknown sampler, where the set to continue was begun with it."""
    if options.sampler in plugins.names("samplers"):
        return
    name = model_name(options.model, folder)
    begun = _readable(options.out or numbered(name, newest(name)))
    if begun is not None and begun.options.sampler == options.sampler:
        plugins.require_package(begun.sampler.model_dump() | {"kind": "samplers"})


def _choose_set(generator: Generator, options: SampleOptions) -> SampleSet:
    """The set to continue where there is one that was asked for in the same words, else a new one; nothing is written.

    Without `out`, only the newest folder of the model is continued, and only if it is not complete.
    """
    name = model_name(options.model, generator.folder)
    out = options.out or numbered(name, newest(name))
    wanted = _describe(generator, options, out)
    if options.out is None:
        begun = _readable(out)
        if begun and not begun.complete and begun.identity() == wanted.identity():
            return wanted.continuing(begun)
        return wanted.model_copy(update={"path": numbered(name, newest(name) + 1)})
    begun = SampleSet.find(out)
    if begun is not None:
        begun.require_same(wanted)
    return wanted.continuing(begun) if begun else wanted


def _readable(out: Path) -> SampleSet | None:
    """The set in `out`; None where there is none that this version reads."""
    try:
        return SampleSet.open(out)
    except UserError:
        return None


def _describe(generator: Generator, options: SampleOptions, out: Path) -> SampleSet:
    sampler = plugins.record("samplers", options.sampler, generator.sampler)
    chosen = dict(sampler["options"])
    settled = {"num_steps": chosen.pop("num_steps"), "sampler_options": chosen}
    folder, types = generator.folder, generator.types
    return SampleSet(
        path=out,
        format=options.format,
        by_class=options.by_class,
        num_samples=generator.num_samples,
        options=SamplingOptions(**sampling_values(options) | settled),
        sampler=PluginRecord(**sampler),
        guide=generator.guide.weights_sha256 if generator.guide else None,
        model=SampledModel(
            path=str(folder.path),
            preset=folder.config.preset,
            step=folder.step,
            weights_sha256=folder.weights_sha256,
            dtype=types.network,
            decode_dtype=types.decoder,
        ),
        latents=folder.latents,
    )


def _writer(samples: SampleSet, generator: Generator) -> Writer:
    return WRITERS[samples.format](
        samples.path, count=samples.num_samples, class_names=generator.class_names, by_class=samples.by_class
    )


def _begin(samples: SampleSet, held: ExitStack, generator: Generator, writer: Writer) -> set[int]:
    """Rank 0: holds the folder against another job until `held` ends, writes the record; the blocks that are there."""
    held.enter_context(locked(samples.path))
    if not (samples.path / RECORD).is_file():
        BlockMarkers(samples.path).remove()  # left by a set that was deleted: nobody knows of which images
    samples.write()
    return _finished_blocks(generator, writer)


def _finished_blocks(generator: Generator, writer: Writer) -> set[int]:
    """The marked blocks that are whole; all other markers, and what a killed process left half written, are removed."""
    for folder in (writer.out, writer.out / PROGRESS, writer.out / "latents"):
        files.remove_leftovers(folder)
    markers, done = BlockMarkers(writer.out), set()
    for block, counts in markers.done().items():
        indices = generator.block_indices(block)
        whole = counts.images == len(indices) and block < generator.num_blocks
        if whole and writer.is_there(block, indices, [generator.labels(i) for i in indices]):
            done.add(block)
    markers.keep(done)
    return done


def _beginning(samples: SampleSet, done: set[int], blocks: int) -> str:
    resumed = f", resumed after {len(done)} of {blocks} blocks" if done else ""
    return f"{samples.num_samples} images to {samples.path}{resumed}"


def _write_blocks(
    generator: Generator, writer: Writer, blocks: Iterable[int], world: World, report: Reporter
) -> None:  # fmt: skip
    """Writes each block in a thread while the next is computed; all processes return when all blocks are written.

    Raises:
        UserError: a block cannot be written, or the set was deleted meanwhile (`folder-gone`).
        Interrupted: some process received a signal; blocks that were finished then are written.
    """
    markers, total, size = BlockMarkers(writer.out), generator.num_samples, generator.options.batch_size

    def write(batch: SampleBatch) -> None:
        _require_record(writer.out)
        writer.write(batch)
        markers.mark(batch)

    def progress() -> None:
        report(Progress(task="sample", done=min(markers.count() * size, total), total=total, unit="images"))

    progress()
    with StopRequest() as stop:
        with WriteBehind() as behind, closing(generator.batches(list(blocks))) as batches:
            for batch in batches:
                behind.submit(write, batch)
                progress()
                if stop.received:
                    break
        progress()
        received = next((signum for signum in world.gather_objects(stop.received) if signum), None)
        if received is not None:
            raise Interrupted(received)


def _require_record(out: Path) -> None:
    if not (out / RECORD).is_file():
        raise UserError(
            f"{out} was deleted or moved while samples were written to it",
            code="folder-gone",
            expected="a folder that stays until all samples are there",
            remedy="run the same command again",
        )


def _finish(
    samples: SampleSet, generator: Generator, writer: Writer, *, rate: float, report: Reporter
) -> SampleSet:  # fmt: skip
    """Rank 0, once all blocks are there: the files of the whole set, then the record that says it is complete.

    Raises:
        UserError: blocks are gone or damaged (`damaged-file`); the same command makes them again.
    """
    _require_record(samples.path)
    missing = sorted(set(range(generator.num_blocks)) - _finished_blocks(generator, writer))
    if missing:
        raise UserError(
            f"{samples.path}: {len(missing)} blocks that were written are gone or damaged, the first is {missing[0]}",
            code="damaged-file",
            expected="files that nobody changes while samples are written",
            remedy="run the same command again: it makes them again",
        )
    writer.finish(generator.num_blocks)
    report(Saved(what="samples", path=writer.result))
    if generator.decodes:
        path = samples.path / GRID
        save_png(_grid(generator, writer), path)
        report(Saved(what="grid", path=path))
    markers = BlockMarkers(samples.path)
    blocks = markers.done().values()
    means = {k: sum(getattr(b, k) * b.images for b in blocks) / samples.num_samples for k in ("nfe", "passes", "saved")}
    finished = samples.model_copy(update={"counts": SamplingCost(**means, images_per_second=rate)})
    finished.write()
    markers.remove()
    return finished


def _grid(generator: Generator, writer: Writer) -> Image.Image:
    count = min(generator.num_samples, GRID_IMAGES)
    labels = [generator.labels(i) for i in range(count)]
    size = generator.options.batch_size
    images = [writer.image(i, label, batch_size=size) for i, label in enumerate(labels)]
    columns = square_columns(count, classes=len(generator.labels.classes or ()))
    return labelled_grid(np.stack(images), [generator.class_names[label] for label in labels], columns)


def _result(samples: SampleSet, writer: Writer) -> SampleResult:
    assert samples.counts is not None
    return SampleResult(
        out=samples.path,
        samples=writer.result,
        grid=samples.path / GRID if writer.needs_images else None,
        images=samples.num_samples,
        step=samples.model.step,
        sampler=samples.sampler.model_dump(),
        precision=samples.model.dtype,
        decode_precision=samples.model.decode_dtype,
        **samples.counts.model_dump(),
    )
