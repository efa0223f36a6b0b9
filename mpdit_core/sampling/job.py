"""`mpdit sample`: images, latents or an npz from a model, as many as asked for, going on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpdit_core import __version__, plugins
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.pictures import labelled_grid, save_png, square_columns
from mpdit_core.reporting import Event, Note, Progress, Result, Saved, Summary, jsonable
from mpdit_core.runtime import files
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.sampling.generator import Generation, SampleBatch, SampleOptions, class_names, generate, prepare, share
from mpdit_core.sampling.sample_set import (
    MANIFEST,
    WRITERS,
    Format,
    Writer,
    choose_out,
    locked,
    newest,
    open_folder,
    read_manifest,
)
from mpdit_core.sampling.sample_set import Progress as Markers

__all__ = ["SampleBatch", "SampleOptions", "SampleRequest", "generate", "sample"]

GRID_IMAGES = 60
SAMPLES = Path("samples")


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What `sample` is asked for. `out` None: `samples/<model>-<n>/`."""

    model: str
    options: SampleOptions
    out: Path | None = None
    format: Format = "png"
    by_class: bool = False
    device: str = "auto"


def sample(request: SampleRequest) -> Iterator[Event]:
    """Makes the samples. The last event is a `Result` with out, grid, nfe, passes and images per second.

    Raises:
        UserError: anything `prepare` refuses, or a folder that holds something else; nothing is changed then.
    """
    device = select_device(request.device)
    with process_group(device) as world, ExitStack() as stack:
        folder = open_model(request.model)
        kind = WRITERS[request.format]
        _require_sampler(request, folder)
        generation = prepare(folder, request.options, device=device, decode=kind.needs_images)
        identity = describe(folder, generation, request)
        out, complete = _choose(request, folder, identity, world)
        if complete:
            yield from _already(out)
            return
        if world.is_main:
            stack.enter_context(locked(out))
        writer = kind(
            out,
            count=request.options.num_samples,
            class_names=class_names(folder.latents, folder.config.model.num_classes),
            by_class=request.by_class,
        )
        yield from _Sampling(generation, writer, request, world=world, folder=folder).run()


def _require_sampler(request: SampleRequest, folder: ModelFolder) -> None:
    """Raises `UserError` naming the package of an unknown sampler, where the folder to go on with was begun with it."""
    if request.options.sampler in plugins.names("samplers"):
        return
    name = model_name(request.model, folder)
    out = request.out or SAMPLES / f"{name}-{newest(name, SAMPLES)}"
    made = read_manifest(out).get("identity", {}).get("sampler")
    if isinstance(made, dict) and made.get("name") == request.options.sampler:
        plugins.require_package(made)


def describe(folder: ModelFolder, generation: Generation, request: SampleRequest) -> dict[str, Any]:
    """Everything that fixes the samples, as plain JSON values: what a later call must equal to go on with them."""
    options = request.options
    return jsonable(
        {
            "model": {"weights_sha256": folder.weights_sha256, "step": folder.step},
            "options": options.model_dump(
                mode="json", exclude={"compile", "sampler", "num_steps", "sampler_options", "guide"}
            ),
            "sampler": plugins.record("samplers", options.sampler, generation.sampler),
            "guide": open_model(options.guide).weights_sha256 if options.guide else None,
            "format": request.format,
            "by_class": request.by_class,
        }
    )


def model_name(where: str, folder: ModelFolder) -> str:
    """A short name for file names: `digits-1` for a run, `digits-1-step-0000400` for one of its checkpoints."""
    if where.startswith("hf:"):
        return where.removeprefix("hf:").partition("@")[0].rpartition("/")[2]
    if folder.run is not None:
        run = folder.run.resolve().name
        return run if Path(where).resolve() == folder.run.resolve() else f"{run}-{folder.path.name}"
    return folder.path.resolve().name


def _choose(request: SampleRequest, folder: ModelFolder, identity: dict[str, Any], world: World) -> tuple[Path, bool]:
    """Rank 0 chooses the folder and opens it; all learn of it."""
    chosen = (Path(), False)
    if world.is_main:
        out = request.out or choose_out(model_name(request.model, folder), identity, SAMPLES)
        chosen = (out, open_folder(out, identity))
    return world.broadcast_object(chosen)


def _already(out: Path) -> Iterator[Event]:
    known = files.read_json(out / MANIFEST)
    yield Note(text=f"{out} is complete: nothing to do")
    yield Result(data={"out": str(out), **known.get("result", {})})


class _Sampling:
    """One session: from what is done already to the end."""

    def __init__(
        self, generation: Generation, writer: Writer, request: SampleRequest, *, world: World, folder: ModelFolder
    ):
        self.generation, self.writer, self.request, self.world = generation, writer, request, world
        self.out, self.markers, self.folder = writer.out, Markers(writer.out), folder
        self.total = request.options.num_samples

    def run(self) -> Iterator[Event]:
        if self.world.is_main:
            for leftovers in (self.out, self.out / ".progress", self.out / "latents"):
                files.remove_leftovers(leftovers)
        done: set[int] = self.world.broadcast_object(self._finished_blocks() if self.world.is_main else set())
        mine = share(self.generation, self.world, done=done)
        blocks = self.generation.num_blocks
        yield Note(
            text=f"{self.total} images to {self.out}"
            + (f", going on after {len(done)} of {blocks} blocks" if done else "")
        )
        started = time.monotonic()
        yield from self._generate(mine, at_start=len(done))
        self.world.barrier()
        if self.world.is_main:
            made = self.total - sum(len(self.generation.block_indices(b)) for b in done)
            yield from self._finish(made=made, seconds=time.monotonic() - started)
        self.world.barrier()

    def _finished_blocks(self) -> set[int]:
        done = set()
        for block in self.markers.done():
            indices = self.generation.block_indices(block)
            if self.writer.is_there(block, indices, [self.generation.labels(i) for i in indices]):
                done.add(block)
        return done

    def _generate(self, mine: list[int], *, at_start: int) -> Iterator[Event]:
        """Writes each block in a thread while the next is computed; at most one block waits to be written."""
        size = self.request.options.batch_size
        yield Progress(task="sample", done=min(at_start * size, self.total), total=self.total, unit="images")
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as pool:
            writing: Future[None] | None = None
            for batch in self.generation.batches(mine):
                if writing is not None:
                    writing.result()
                    done = min(self.markers.count() * size, self.total)
                    yield Progress(task="sample", done=done, total=self.total, unit="images")
                writing = pool.submit(self._write, batch)
            if writing is not None:
                writing.result()

    def _write(self, batch: SampleBatch) -> None:
        self.writer.write(batch)
        self.markers.mark(batch)

    def _finish(self, *, made: int, seconds: float) -> Iterator[Event]:
        yield Progress(task="sample", done=self.total, total=self.total, unit="images")
        shown = self.writer.finish(self.generation.num_blocks)
        yield Saved(what=self.request.format if shown.suffix else "folder", path=shown)
        grid = self._grid()
        if grid is not None:
            yield Saved(what="grid", path=grid)
        decoder = self.generation.autoencoder
        counts = list(self.markers.done().values())
        mean = {k: sum(c[k] * c["images"] for c in counts) / self.total for k in ("nfe", "passes", "saved")}
        result = {
            "images": self.total,
            "samples": str(shown),
            "grid": str(grid) if grid else None,
            "step": self.folder.step,
            "precision": "bfloat16" if self.generation.autocast else "float32",
            "decode_precision": decoder.decode_precision if decoder else None,
            **{k: int(v) if v == int(v) else round(v, 2) for k, v in mean.items()},
            "images_per_second": made / seconds if seconds > 0 else None,
        }
        manifest = files.read_json(self.out / MANIFEST)
        manifest |= {"mpdit": __version__, "complete": True, "model": self._model(), "result": jsonable(result)}
        files.write_json(self.out / MANIFEST, manifest)
        self.markers.remove()
        yield Summary(title=f"{self.total} samples of {self.request.model}", rows=self._rows(result, shown))
        yield Result(data={"out": str(self.out), **result})

    def _model(self) -> dict[str, Any]:
        """What an evaluation of the samples wants to know; where its files lie is no part of what fixes them."""
        latents = self.folder.latents
        return {
            "path": str(self.folder.path),
            "preset": self.folder.config.preset,
            "dtype": str(self.generation.autocast or torch.float32),
            "latents": latents.model_dump(mode="json") if latents else None,
        }

    def _rows(self, result: dict[str, Any], shown: Path) -> dict[str, str]:
        options, sampler = self.request.options, self.generation.sampler
        passes = f"{result['passes']} passes of each image through the network"
        name = " ".join([options.sampler, *(f"{key}={value}" for key, value in options.sampler_options.items())])
        if result["saved"]:
            passes += f"; the guidance interval saved {result['saved']}"
        rows = {
            "where": str(shown),
            "sampler": f"{name}, {sampler.num_steps} steps, {result['nfe']} evaluations (NFE)",
            "guidance": self._guidance(),
            "cost": passes,
            "speed": f"{result['images_per_second']:.3g} images/s" if result["images_per_second"] else "",
        }
        return {k: v for k, v in rows.items() if v}

    def _guidance(self) -> str:
        guidance = self.generation.guidance
        if guidance.is_off:
            return "off"
        lo, hi = guidance.interval
        text = f"{guidance.scale:g}"
        text += f", {guidance.schedule} schedule" if guidance.schedule != "constant" else ""
        text += f", for t from {lo:g} to {hi:g}" if (lo, hi) != (0, 1) else ""
        return text + (f", away from {self.request.options.guide}" if self.generation.guide else "")

    def _grid(self) -> Path | None:
        count = min(self.total, GRID_IMAGES)
        labels = [self.generation.labels(i) for i in range(count)]
        size = self.request.options.batch_size
        images = [self.writer.image(i, label, batch_size=size) for i, label in enumerate(labels)]
        kept = [image for image in images if image is not None]
        if not kept:
            return None
        path = self.out / "grid.png"
        classes = len(self.generation.labels.classes or ())
        picture = labelled_grid(
            np.stack(kept),
            [self.writer.class_names[label] for label in labels],
            square_columns(count, classes=classes),
        )
        save_png(picture, path)
        return path
