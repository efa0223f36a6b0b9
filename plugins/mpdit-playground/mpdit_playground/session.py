"""Requests, runs, visitors with their history, and the models that they share. No Gradio."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import cached_property

from mpdit_core import plugins
from mpdit_core.api import UserError
from mpdit_core.sampling import Generator, SamplingOptions
from mpdit_core.sweeps import read_sweeps, with_value
from mpdit_playground.columns import Column, compute
from mpdit_playground.options import PlaygroundOptions

MAX_COLUMNS, MAX_IMAGES = 8, 256
KEPT_RUNS = 12  # per visitor


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a visitor asks for. `compare` is `KEY=V1,V2` or empty."""

    models: tuple[str, ...]
    options: SamplingOptions
    num_samples: int
    compare: str = ""


@dataclass(eq=False)
class Run:
    """The result of one click on Sample; its columns are filled while it is computed."""

    request: Request
    columns: list[Column]
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    stopped: bool = False

    @cached_property
    def summary(self) -> str:
        options = self.request.options
        steps = f", {options.num_steps} steps" if options.num_steps else ""
        guidance = f", guidance {options.guidance} {options.guidance_scale:g}" if options.guidance_scale != 1 else ""
        compare = f", {self.request.compare}" if self.request.compare else ""
        return f"{options.sampler}{steps}{guidance}, seed {options.seed}{compare}"


@dataclass(eq=False)
class Visitor:
    """One open page."""

    stop: threading.Event = field(default_factory=threading.Event)
    runs: deque[Run] = field(default_factory=lambda: deque(maxlen=KEPT_RUNS))
    shown: Run | None = None
    chosen: tuple[int, int] = (0, 0)  # column and image


class Playground:
    """The loaded models, which all visitors share, and the queue of jobs, of which one computes at a time.

    Raises:
        UserError: as `Generator`, for every model.
    """

    def __init__(self, options: PlaygroundOptions):
        self.options = options
        self.start = SamplingOptions(**options.sampling_values())
        self.generators = {
            model: Generator(model, self.start, device=options.device, num_samples=options.num_samples)
            for model in options.models
        }
        self.samplers = sorted({*plugins.names("samplers"), options.sampler})
        self.visitors: dict[str, Visitor] = {}
        self.jobs: list[Visitor] = []  # the visitor whose job computes, then those whose jobs wait

    def visitor(self, key: str | None) -> Visitor:
        return self.visitors.setdefault(key or "", Visitor())

    def leave(self, key: str | None) -> None:
        """Ends the job and deletes the history of a visitor whose page was closed."""
        visitor = self.visitors.pop(key or "", Visitor())
        visitor.stop.set()
        self.done(visitor)

    def queue(self, visitor: Visitor) -> int:
        """Adds the visitor's job to the queue. Returns the number of jobs before it."""
        visitor.stop.clear()
        if visitor not in self.jobs:
            self.jobs.append(visitor)
        return self.jobs.index(visitor)

    def done(self, visitor: Visitor) -> None:
        if visitor in self.jobs:
            self.jobs.remove(visitor)

    def columns(self, request: Request) -> list[Column]:
        """A column for each model and each compared value.

        Raises:
            UserError: impossible options, or options that a visitor must not set.
        """
        variants = [("", request.options)]
        for key, texts in read_sweeps([request.compare] if request.compare else []).items():
            variants = [(f"{key} {text}", with_value(request.options, key, text)) for text in texts]
        if not request.models:
            raise UserError("no model is chosen", code="no-model", expected="one or more")
        count = len(request.models) * len(variants)
        if count > MAX_COLUMNS or count * request.num_samples > MAX_IMAGES:
            raise UserError(
                f"{count} columns of {request.num_samples} images",
                code="too-many-images",
                expected=f"up to {MAX_COLUMNS} columns and {MAX_IMAGES} images",
            )
        for _, options in variants:
            self._allow(options)
        device, count = self.options.device, request.num_samples
        return [
            Column(m, varied, self._generator(m).changed(num_samples=count, **o.sampling_values()), device)
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
        """Refuses samplers and guides that the page does not offer: a visitor must not name files of the server."""
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

    def names_latents(self, model: str) -> bool:
        """Whether the folder of the training latents is known; an exported model does not name it."""
        spec = self.generators[model].spec
        return self.options.latents is not None or bool(spec and spec.folder)

    def run(self, request: Request, visitor: Visitor) -> Iterator[Run]:
        """Yields the run repeatedly while it is computed; the last time, finished or stopped, it is in the history.

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
