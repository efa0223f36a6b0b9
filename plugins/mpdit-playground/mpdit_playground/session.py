"""Generation for the page: models side by side, pictures on the way, stopping, and each visitor's history. No Gradio.

Every block of images is computed exactly as `mpdit sample` computes it, so the images are the same to the byte.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpdit_core import __version__, plugins
from mpdit_core.api import Step, UserError
from mpdit_core.sampling import Generator, SamplingOptions, read_sweeps, sampling_values, with_value
from mpdit_playground.command import PlaygroundOptions
from mpdit_playground.command_line import sample_command

SECONDS_BETWEEN_FRAMES = 0.25
SHARE_OF_PICTURES = 0.2  # of the time of a block, at most, goes into decoding pictures on the way
MOST_COLUMNS, MOST_IMAGES = 8, 256
KEPT_RUNS = 12  # per visitor


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a visitor asks for. `compare`: `KEY=V1,V2`, or empty."""

    models: tuple[str, ...]
    options: SamplingOptions
    num_samples: int
    compare: str = ""


@dataclass
class Picture:
    """One image: the data predicted at time t while it resolves, the sample at t = 0."""

    index: int
    label: int
    t: float = 1.0
    image: np.ndarray | None = None  # [3, H, W] uint8
    latent: Tensor | None = None  # [C, h, w], standardised; of a finished image
    html: str = ""  # of the image as it is now, kept by show.py

    def update(self, image: Tensor, t: float, latent: Tensor | None = None) -> None:
        self.image, self.t, self.latent, self.html = image.numpy(), t, latent, ""


@dataclass
class Column:
    """One model under one setting."""

    model: str
    varied: str  # `guidance_scale 2`, or empty
    generator: Generator
    device: str
    pictures: list[Picture] = field(default_factory=list)
    nfe: int = 0

    def __post_init__(self) -> None:
        self.pictures = [Picture(i, self.generator.labels(i)) for i in range(self.generator.num_samples)]

    @property
    def command(self) -> str:
        generator = self.generator
        return sample_command(self.model, generator.options, num_samples=generator.num_samples, device=self.device)

    def class_name(self, picture: Picture) -> str:
        """The first of the class's names; empty for a model without classes."""
        names = self.generator.class_names
        return names[picture.label].partition(",")[0] if picture.label < len(names) else ""

    def settings(self, picture: Picture) -> dict[str, Any]:
        """Everything that fixes an image, as plain JSON values."""
        which = {"image": picture.index, "label": picture.label, "class": self.class_name(picture)}
        return which | self._shared_settings

    @cached_property
    def _shared_settings(self) -> dict[str, Any]:
        folder, options = self.generator.folder, self.generator.options
        return {
            "model": {"path": self.model, "step": folder.step, "weights_sha256": folder.weights_sha256},
            "options": options.model_dump(mode="json"),
            "sampler": plugins.record("samplers", options.sampler, self.generator.sampler),
            "command": self.command,
            "mpdit": __version__,
        }


@dataclass
class Run:
    """One click on Sample: its columns, filled while it is computed."""

    request: Request
    columns: list[Column]
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    stopped: bool = False

    @cached_property
    def summary(self) -> str:
        options = self.request.options
        steps = f", {options.num_steps} steps" if options.num_steps else ""
        guidance = f", guidance {options.guidance_scale:g}" if options.guidance_scale != 1 else ""
        compare = f", {self.request.compare}" if self.request.compare else ""
        return f"{options.sampler}{steps}{guidance}, seed {options.seed}{compare}"


@dataclass
class Visitor:
    """One open page."""

    stop: threading.Event = field(default_factory=threading.Event)
    runs: deque[Run] = field(default_factory=lambda: deque(maxlen=KEPT_RUNS))
    shown: Run | None = None
    chosen: tuple[int, int] = (0, 0)  # column and image


class Playground:
    """The loaded models, which all visitors share. The page lets one job at a time compute.

    Raises:
        UserError: as `Generator`, for every model.
    """

    def __init__(self, options: PlaygroundOptions):
        self.options = options
        self.start = SamplingOptions(**sampling_values(options))
        self.generators = {
            model: Generator(model, self.start, device=options.device, num_samples=options.num_samples)
            for model in options.models
        }
        self.samplers = sorted({*plugins.names("samplers"), options.sampler})
        self.visitors: dict[str, Visitor] = {}
        self.jobs: list[Visitor] = []  # the one that computes, then those that wait

    def visitor(self, key: str | None) -> Visitor:
        return self.visitors.setdefault(key or "", Visitor())

    def leave(self, key: str | None) -> None:
        """A page was closed: its job ends, its history goes."""
        visitor = self.visitors.pop(key or "", Visitor())
        visitor.stop.set()
        self.done(visitor)

    def queue(self, visitor: Visitor) -> int:
        """Takes a place in the queue. Returns how many jobs come before."""
        visitor.stop.clear()
        if visitor not in self.jobs:
            self.jobs.append(visitor)
        return self.jobs.index(visitor)

    def done(self, visitor: Visitor) -> None:
        if visitor in self.jobs:
            self.jobs.remove(visitor)

    def columns(self, request: Request) -> list[Column]:
        """The models × the values compared.

        Raises:
            UserError: options that cannot be, or that a visitor must not set.
        """
        variants = [("", request.options)]
        for axis in read_sweeps([request.compare] if request.compare else []):
            variants = [(f"{axis.key} {text}", with_value(request.options, axis.key, text)) for text in axis.texts]
        if not request.models:
            raise UserError("no model is chosen", code="no-model", expected="one or more")
        count = len(request.models) * len(variants)
        if count > MOST_COLUMNS or count * request.num_samples > MOST_IMAGES:
            raise UserError(
                f"{count} columns of {request.num_samples} images",
                code="too-many-images",
                expected=f"up to {MOST_COLUMNS} columns and {MOST_IMAGES} images",
            )
        for _, options in variants:
            self._allow(options)
        device = self.options.device
        return [
            Column(m, varied, self._generator(m).changed(num_samples=request.num_samples, **sampling_values(o)), device)
            for m in request.models
            for varied, o in variants
        ]

    def _generator(self, model: str) -> Generator:
        if model not in self.generators:
            raise UserError(
                f"the page was opened without {model}", code="no-such-model", expected=", ".join(self.generators)
            )
        return self.generators[model]

    def _allow(self, options: SamplingOptions) -> None:
        """A sampler may be named by a file and a guide by a path; a visitor must not reach the server's disk so."""
        if options.sampler not in self.samplers:
            raise UserError(
                f"there is no sampler called {options.sampler!r}",
                code="no-such-plugin",
                expected=", ".join(self.samplers),
            )
        if options.guide not in (None, self.start.guide, *self.generators):
            raise UserError(
                f"the page was opened without the guide {options.guide}",
                code="no-such-model",
                expected="one of the models that the page was opened with",
            )

    def run(self, request: Request, visitor: Visitor) -> Iterator[Run]:
        """The run, again and again while its pictures resolve, and at last finished or stopped; then in the history.

        Raises:
            UserError: as `columns` and `Generator.integrate`.
        """
        run = Run(request, self.columns(request))
        try:
            for _ in compute(run.columns, visitor.stop):
                run.seconds = time.monotonic() - run.started
                yield run
        except CancelledError:
            run.stopped = True
        run.seconds = time.monotonic() - run.started
        visitor.runs.appendleft(run)
        yield run


def compute(columns: Sequence[Column], stop: threading.Event) -> Iterator[None]:
    """Fills the columns, and yields a few times per second meanwhile.

    On a CPU each block is computed by one thread alone, as many at once as there are threads, as `Generator.batches`
    does it; on a GPU one after the other.

    Raises:
        CancelledError: `stop` was set.
        UserError: as `Generator.integrate`.
    """
    on_cpu = columns[0].generator.device.type == "cpu"
    failed = threading.Event()
    with ThreadPoolExecutor(max_workers=torch.get_num_threads() if on_cpu else 1) as pool:

        def ended() -> bool:
            return stop.is_set() or failed.is_set()

        blocks = [(column, block) for block in range(columns[0].generator.num_blocks) for column in columns]
        pending = {pool.submit(_compute_block, column, block, ended) for column, block in blocks}
        try:
            while pending:
                finished, pending = wait(pending, timeout=SECONDS_BETWEEN_FRAMES, return_when=FIRST_EXCEPTION)
                for job in finished:
                    job.result()
                yield
        finally:
            failed.set()


def _compute_block(column: Column, block: int, ended: Callable[[], bool]) -> None:
    generator = column.generator
    if generator.device.type == "cpu":
        torch.set_num_threads(1)  # of this thread alone
    indices = generator.block_indices(block)
    pictures = [column.pictures[i] for i in indices]
    velocity = generator.velocity([picture.label for picture in pictures])
    preview = Preview(velocity, lambda latents, t: _update(pictures, generator.decode(latents), t))

    def on_step(step: Step) -> None:
        if ended():
            raise CancelledError
        preview.after(step)

    if ended():
        raise CancelledError
    latents = generator.integrate(preview, *generator.noise(indices), on_step=on_step)  # pyright: ignore[reportArgumentType]
    column.nfe = velocity.nfe
    if not bool(torch.isfinite(latents).all()):
        raise UserError(
            "an image came out as NaN or infinite",
            code="not-finite",
            expected="finite latents",
            remedy="a smaller guidance scale, or a model that trained without diverging",
        )
    _update(pictures, generator.decode(latents), 0.0, latents.cpu())


def _update(pictures: Sequence[Picture], images: Tensor, t: float, latents: Tensor | None = None) -> None:
    for i, picture in enumerate(pictures):
        picture.update(images[i], t, None if latents is None else latents[i])


class Preview:
    """A velocity function that remembers the data predicted from its last evaluation, `x_t - t·velocity`.

    No evaluation is added, and a picture is made only so often that decoding takes `SHARE_OF_PICTURES` of the time.
    """

    def __init__(self, velocity: Callable[[Tensor, float], Tensor], show: Callable[[Tensor, float], None]):
        self.velocity, self.show = velocity, show
        self.predicted: Tensor | None = None
        self.next_at = 0.0

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        velocity = self.velocity(x_t, t)
        self.predicted = x_t - t * velocity
        return velocity

    def after(self, step: Step) -> None:
        started = time.monotonic()
        if self.predicted is None or step.t == 0 or started < self.next_at:
            return
        self.show(self.predicted, step.t)
        ended = time.monotonic()
        self.next_at = ended + (ended - started) * (1 / SHARE_OF_PICTURES - 1)
