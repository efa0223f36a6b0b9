"""Computes columns of pictures, one column per model and setting. No Gradio.

Every block of images is computed as by `mpdit sample`, so the images are bit-equal to its images.
"""

from __future__ import annotations

import threading
import time
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
from mpdit_core.sampling import Generator
from mpdit_playground.command_line import sample_command

SECONDS_BETWEEN_FRAMES = 0.25
SHARE_OF_PICTURES = 0.2  # largest fraction of a block's time for decoding intermediate pictures


@dataclass(eq=False)
class Picture:
    """One image: first the data predicted at time t; at the end, at t = 0, the sample."""

    index: int
    label: int
    t: float = 1.0
    image: np.ndarray | None = None  # [3, H, W] uint8
    latent: Tensor | None = None  # [C, h, w], standardised; of a finished image
    html: str = ""  # the image as HTML, cached by show.py

    def update(self, image: Tensor, t: float, latent: Tensor | None = None) -> None:
        self.image, self.t, self.latent, self.html = image.numpy(), t, latent, ""


@dataclass(eq=False)
class Column:
    """The images of one model with one setting."""

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
        """Everything that determines an image, as plain JSON values."""
        which = {"image": picture.index, "label": picture.label, "class": self.class_name(picture)}
        return which | self._shared_settings

    @cached_property
    def _shared_settings(self) -> dict[str, Any]:
        folder, options = self.generator.folder, self.generator.options
        return {
            "model": {"path": self.model, "step": folder.step, "weights_sha256": folder.weights_sha256},
            "options": options.model_dump(mode="json"),
            "sampler": plugins.record("samplers", options.sampler, self.generator.sampler).as_json(),
            "command": self.command,
            "mpdit": __version__,
        }


def compute(columns: Sequence[Column], stop: threading.Event) -> Iterator[None]:
    """Fills the columns, and yields a few times per second until they are full.

    On a CPU each block is computed by one thread, and as many blocks at once as there are threads, as in
    `Generator.batches`; on a GPU one after the other.

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
        torch.set_num_threads(1)  # for this thread only
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
    latents = generator.integrate(preview, *generator.noise(indices), on_step=on_step)
    column.nfe = velocity.nfe
    if not bool(torch.isfinite(latents).all()):
        raise UserError(
            "an image has NaN or infinite values",
            code="not-finite",
            expected="finite latents",
            remedy="use a smaller guidance scale, or a model whose training did not diverge",
        )
    _update(pictures, generator.decode(latents), 0.0, latents.cpu())


def _update(pictures: Sequence[Picture], images: Tensor, t: float, latents: Tensor | None = None) -> None:
    for i, picture in enumerate(pictures):
        picture.update(images[i], t, None if latents is None else latents[i])


class Preview:
    """A velocity function that keeps the data predicted by its last evaluation, `x_t - t·velocity`.

    It adds no evaluation. It shows pictures so rarely that decoding takes at most `SHARE_OF_PICTURES` of the time.
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
