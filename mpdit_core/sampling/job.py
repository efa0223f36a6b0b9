"""`mpdit sample`: images or latents from a model. An unfinished set is continued."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing

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
from mpdit_core.sampling.generator import Generator, SampleBlock
from mpdit_core.sampling.labels import require_classes
from mpdit_core.sampling.options import SampleOptions, SampleResult, ViewResult, options_without_effect, warn_if_given
from mpdit_core.sampling.sample_set import BlockMarkers, SampledModel, SampleSet, model_name, newest_folder, next_folder
from mpdit_core.sampling.views import VIEWS
from mpdit_core.sampling.writers import WRITERS

DEFAULT_SAMPLES = 16
GRID_IMAGES = 60
GRID = "grid.png"


def sample(options: SampleOptions, *, report: Reporter = silent) -> SampleResult | ViewResult:
    """Makes the samples, or the view that `options` ask for.

    In a group of processes each writes its share of the blocks, and all return the same result.

    Raises:
        UserError: anything that `Generator` refuses, or a folder that holds something else, before any file changes;
            or later, a full or missing disk. Finished blocks are kept.
        Interrupted: a signal came; finished blocks are kept, and the same call resumes.
    """
    for warning in _without_effect(options):
        report(warning)
    if options.views:
        return _view(options, report)
    device = select_device(options.device)
    with process_group(device) as world, ExitStack() as locks:
        folder = open_model(options.model)
        _find_begun_set(options, folder)  # refuses a folder of other files, before the model is loaded
        if options.by_class:
            require_classes(folder.config.model.num_classes, "by_class")
        generator = Generator(
            folder,
            options,
            device=device,
            num_samples=options.num_samples or DEFAULT_SAMPLES,
            decode=WRITERS[options.format].needs_images,
        )
        samples = world.on_main(lambda: _choose_set(generator, options))
        generator.types = samples.model.types
        job = SetJob(samples, generator, report)
        if samples.complete:
            if world.is_main:
                job.markers.remove()  # the process that finished the set may have been killed before it removed them
            report(Note(text=f"{samples.path} is complete: nothing to do"))
            return job.result(samples)
        done = world.on_main(lambda: job.begin(locks))
        resumed = f", resumed after {len(done)} of {generator.num_blocks} blocks" if done else ""
        report(Note(text=f"{samples.num_samples} images to {samples.path}{resumed}"))
        started = time.monotonic()
        job.write_blocks(generator.blocks(world, done=done), world)
        new = generator.num_samples - sum(len(generator.block_indices(block)) for block in done)
        rate = new / (time.monotonic() - started)
        return job.result(world.on_main(lambda: job.finish(rate)))


def _without_effect(options: SampleOptions) -> list[Warning]:
    """Warnings about options that change nothing."""
    found = options_without_effect(options, sweep=options.sweep)
    if options.nearest is None:
        found += warn_if_given(options, ["latents"], "it is the folder that --nearest searches")
    if options.format != "png" and not options.views:
        found += warn_if_given(options, ["by_class"], f"the format {options.format} has no class folders")
    return found


def _view(options: SampleOptions, report: Reporter) -> ViewResult:
    """The view that is asked for. Raises `UserError` for two at once, and for options of a set of samples."""
    name, *others = options.views
    if options.by_class:
        others.append("by_class")
    if options.format != "png":
        others.append(f"format {options.format}")
    if others:
        raise UserError(
            f"{name} cannot be combined with {others[0]}",
            code="conflicting-options",
            expected="a set of samples, or one view, per command",
        )
    return VIEWS[name](options, report=report)


def _find_begun_set(options: SampleOptions, folder: ModelFolder) -> SampleSet | None:
    """The set in `out`; without `out`, the one in the newest folder of the model, if it is readable and not complete.

    Raises:
        UserError: `out` holds something else, or the package of the set's sampler is missing (`other-package`).
    """
    if options.out:
        begun = SampleSet.find(options.out)
    else:
        try:
            begun = SampleSet.open(newest_folder(model_name(options.model, folder)))
        except UserError:
            return None
    if begun and begun.options.sampler == options.sampler and options.sampler not in plugins.names("samplers"):
        plugins.require_package(begun.sampler.model_dump() | {"kind": "samplers"})
    return begun if begun and (options.out or not begun.complete) else None


def _choose_set(generator: Generator, options: SampleOptions) -> SampleSet:
    """The set to continue, where one was begun with the same options, else a new one; nothing is written."""
    filled_in, sampler = generator.for_records()
    folder, types = generator.folder, generator.types
    wanted = SampleSet(
        path=options.out or next_folder(model_name(options.model, folder)),
        format=options.format,
        by_class=options.by_class,
        num_samples=generator.num_samples,
        options=filled_in,
        sampler=sampler,
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
    begun = _find_begun_set(options, folder)
    if begun and options.out:
        begun.require_same(wanted)
    return wanted.continuing(begun) if begun and begun.identity() == wanted.identity() else wanted


class SetJob:
    """Writes one set: finds finished blocks, writes the others, then the files of the whole set."""

    def __init__(self, samples: SampleSet, generator: Generator, report: Reporter):
        self.samples, self.generator, self.report = samples, generator, report
        self.markers = BlockMarkers(samples.path)
        self.writer = WRITERS[samples.format](samples, generator.class_names)

    def begin(self, locks: ExitStack) -> set[int]:
        """Rank 0: locks the folder until `locks` ends, writes the record, and returns the finished blocks."""
        locks.enter_context(locked(self.samples.path))
        if not SampleSet.is_at(self.samples.path):
            self.markers.remove()  # of a deleted set: the images that they stand for are unknown
        self.samples.write()
        return self.finished_blocks()

    def finished_blocks(self) -> set[int]:
        """The marked blocks whose files are complete. Removes other markers, and temporary files of killed jobs."""
        for folder in (self.samples.path, self.markers.folder, self.writer.result):
            files.remove_leftovers(folder)
        done = set()
        for block, counts in self.markers.done().items():
            indices = self.generator.block_indices(block)  # none of a block that the set does not have
            labels = [self.generator.labels(i) for i in indices]
            if counts.images == len(indices) and self.writer.is_complete(block, indices, labels):
                done.add(block)
        self.markers.keep(done)
        return done

    def write_blocks(self, blocks: list[int], world: World) -> None:
        """Writes each block in a thread while the next is computed; all processes return when all blocks are written.

        Raises:
            UserError: a block cannot be written, or the set was deleted in the meantime (`folder-gone`).
            Interrupted: some process received a signal; blocks that were finished then are written.
        """
        total, size = self.samples.num_samples, self.samples.options.batch_size

        def write(block: SampleBlock) -> None:
            self.require_record()
            self.writer.write(block)
            self.markers.mark(block)

        def progress() -> None:
            done = min(self.markers.count() * size, total)
            self.report(Progress(task="sample", done=done, total=total, unit="images"))

        progress()
        with StopRequest() as stop:
            with WriteBehind() as behind, closing(self.generator.batches(blocks)) as finished:
                for block in finished:
                    behind.submit(write, block)
                    progress()
                    if stop.received:
                        break
            progress()
            received = next((signum for signum in world.gather_objects(stop.received) if signum), None)
            if received is not None:
                raise Interrupted(received)

    def require_record(self) -> None:
        if not SampleSet.is_at(self.samples.path):
            raise UserError(
                f"{self.samples.path} was deleted or moved while samples were written to it",
                code="folder-gone",
                expected="a folder that is not moved until all samples are written",
                remedy="run the same command again",
            )

    def finish(self, rate: float) -> SampleSet:
        """Rank 0, when all blocks are finished: writes the files of the whole set, then the record of a complete set.

        Raises:
            UserError: blocks are missing or damaged (`damaged-file`); the same command makes them again.
        """
        self.require_record()
        if missing := sorted(set(range(self.generator.num_blocks)) - self.finished_blocks()):
            raise UserError(
                f"{self.samples.path}: {len(missing)} finished blocks are missing or damaged, first {missing[0]}",
                code="damaged-file",
                expected="files that no other program changes while samples are written",
                remedy="run the same command again: it writes these blocks again",
            )
        self.writer.finish(self.generator.num_blocks)
        self.report(Saved(what="samples", path=self.writer.result))
        if self.writer.needs_images:
            path = self.samples.path / GRID
            save_png(self.grid(), path)
            self.report(Saved(what="grid", path=path))
        finished = self.samples.model_copy(update={"counts": self.markers.cost(images_per_second=rate)})
        finished.write()
        self.markers.remove()
        return finished

    def grid(self) -> Image.Image:
        labels = [self.generator.labels(i) for i in range(min(self.samples.num_samples, GRID_IMAGES))]
        images = [self.writer.image(i, label) for i, label in enumerate(labels)]
        columns = square_columns(len(images), classes=len(self.generator.labels.classes or ()))
        return labelled_grid(np.stack(images), [self.generator.class_names[label] for label in labels], columns)

    def result(self, finished: SampleSet) -> SampleResult:
        assert finished.counts is not None
        return SampleResult(
            out=finished.path,
            samples=self.writer.result,
            grid=finished.path / GRID if self.writer.needs_images else None,
            images=finished.num_samples,
            step=finished.model.step,
            sampler=finished.sampler.model_dump(),
            precision=finished.model.dtype,
            decode_precision=finished.model.decode_dtype,
            **finished.counts.model_dump(),
        )
