"""The batches of training: each image's inputs depend only on seed, step and position in the global batch.

Time, noise, draw from the posterior, flip and label drop of each image are one row of a table of random numbers. So
batches are the same for any number of processes, any accumulation, and after any restart.

Shapes: n images, C latent channels, h × w latents.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mpdit_core.config import RunConfig
from mpdit_core.data.epoch_order import EpochOrder
from mpdit_core.data.latents import LatentFolder, draw_latents
from mpdit_core.flow.path import target_velocity
from mpdit_core.flow.times import draw_times
from mpdit_core.protocols import TrainingBatch
from mpdit_core.runtime.concurrency import produced_ahead
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.seeding import RandomTable, hash_seed

BATCHES_AHEAD = 3


@dataclass(frozen=True)
class Batch(TrainingBatch):
    """A `TrainingBatch` that can be moved to a device and split."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; to a GPU it is copied from pinned memory, without waiting."""
        if device.type != "cuda":
            return Batch(**{name: x.to(device) for name, x in self.tensors().items()})
        return Batch(**{name: x.pin_memory().to(device, non_blocking=True) for name, x in self.tensors().items()})

    def chunks(self, parts: int) -> Iterator[Batch]:
        """The batch, split into `parts` micro-batches."""
        for tensors in zip(*(x.chunk(parts) for x in self.tensors().values()), strict=True):
            yield Batch(**dict(zip(self.tensors(), tensors, strict=True)))

    def tensors(self) -> dict[str, Tensor]:
        """The fields that the batch has, by name."""
        return {field.name: x for field in fields(self) if (x := getattr(self, field.name)) is not None}


class BatchSource:
    """Makes this process's share of each batch.

    Args:
        config: of the run. Of its global batch, rank r of `world` gets positions r·n … (r+1)·n - 1. Half of the images
            are mirrored, if `train.flip` is on and the latents hold mirror images.
        needs: optional fields of `TrainingBatch` that the terms of the loss use.
    """

    def __init__(
        self,
        latents: LatentFolder,
        config: RunConfig,
        world: World | None = None,
        *,
        needs: frozenset[str] = frozenset(),
    ):
        world = world or World()
        self.latents, self.time, self.null_label = latents, config.time, config.model.null_label
        self.label_dropout, self.needs = config.train.label_dropout, needs
        self.seed, self.batch_size = config.train.seed, config.train.batch_size
        self.flip = config.train.flip and latents.has_flips
        share = self.batch_size // world.size
        self.positions = range(world.rank * share, (world.rank + 1) * share)
        self.order = EpochOrder(len(latents), self.seed)
        draws = latents.spec.autoencoder.form.copies  # 1: noise; 2: noise, and a draw from the posterior
        self.shape = (draws, config.model.channels, *config.model.input_size)
        self.table = RandomTable(
            self.seed, "batches", uniforms=3, normals=math.prod(self.shape), threads=torch.get_num_threads()
        )

    def indices(self, step: int) -> list[int]:
        """The images in this process's share of step `step` (from 0)."""
        return self.order.indices(*self._places(step)).tolist()

    def batch(self, step: int) -> Batch:
        """This process's share of step `step`, on the CPU."""
        batch = self._images(*self._places(step))
        return replace(batch, negative=self._negative(step, batch)) if "negative" in self.needs else batch

    def _images(self, start: int, stop: int) -> Batch:
        """The images at places `start` … `stop` - 1, counted over all steps."""
        uniforms, normals = self.table.rows(start, stop)
        times, flips, drops = torch.from_numpy(uniforms).unbind(1)
        draws = torch.from_numpy(normals).unflatten(1, self.shape)  # [n, 1 or 2, C, h, w]
        indices = self.order.indices(start, stop).tolist()
        flip = (flips < 0.5).tolist() if self.flip else None
        stored = self.latents.batch(indices, flip=flip, teacher="teacher" in self.needs)
        latents = draw_latents(stored, draws[:, -1], self.latents.spec.normalisation)
        labels = stored.labels.masked_fill(drops < self.label_dropout, self.null_label)
        t = draw_times(self.time, times, latent_values=math.prod(self.shape[1:]))
        return Batch(latents, draws[:, 0].contiguous(), t, labels, teacher=stored.teacher)

    def _negative(self, step: int, batch: Batch) -> Tensor:
        """For each image, the target velocity of the one `distance` positions later in the global batch, cyclically.

        The distance is drawn for each step. Images of other processes are computed here again.
        """
        distance = 1 + hash_seed(self.seed, "negative", step) % (self.batch_size - 1)
        if len(self.positions) == self.batch_size:
            return target_velocity(batch.latents, batch.noise).roll(-distance, 0)
        begin, first = step * self.batch_size, (self.positions.start + distance) % self.batch_size
        stop = first + len(self.positions)
        ranges = [(first, min(stop, self.batch_size)), (0, stop - self.batch_size)]
        others = [self._images(begin + a, begin + b) for a, b in ranges if b > a]
        return torch.cat([target_velocity(other.latents, other.noise) for other in others])

    def _places(self, step: int) -> tuple[int, int]:
        """(start, stop) of this process's images of step `step`, counted over all steps."""
        start = step * self.batch_size
        return start + self.positions.start, start + self.positions.stop

    def stream(self, start: int, stop: int, *, device: torch.device) -> Generator[tuple[int, Batch], None, None]:
        """`(step, batch on device)` from `start` to `stop - 1`, made ahead of time in a thread."""
        steps = range(start, stop)
        with closing(produced_ahead(map(self.batch, steps), ahead=BATCHES_AHEAD, name="batches")) as batches:
            for step, batch in zip(steps, batches, strict=True):
                yield step, batch.to(device)
