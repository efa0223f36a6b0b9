"""What the network sees at a step: a function of (seed, step, position in the global batch) and nothing else.

Every sample draws its time, noise, posterior sample, flip and label drop from a generator of its own, so the sequence
is the same for any number of processes, any accumulation, and after any restart.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mpdit_core.config import ObjectiveConfig
from mpdit_core.data.latents import EpochOrder, LatentFolder, draw_latents
from mpdit_core.flow.path import draw_times
from mpdit_core.runtime.seeding import generator


@dataclass(frozen=True)
class Batch:
    """Inputs of the loss for n samples: latents and noise [n, C, H, H], t [n], labels [n] (some null)."""

    latents: Tensor
    noise: Tensor
    t: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """On `device`; from pinned memory without waiting, where there is a GPU."""
        if device.type != "cuda":
            return Batch(*(x.to(device) for x in self._tensors()))
        return Batch(*(x.pin_memory().to(device, non_blocking=True) for x in self._tensors()))

    def chunks(self, parts: int) -> Iterator[Batch]:
        for tensors in zip(*(x.chunk(parts) for x in self._tensors()), strict=True):
            yield Batch(*tensors)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.latents, self.noise, self.t, self.labels


class BatchSource:
    """Makes batch after batch of this process's share.

    Args:
        latents: where the moments come from.
        batch_size: of the global batch; `rank` of `world_size` gets positions rank·n … (rank+1)·n - 1.
        flip: draw the mirror image for half of the samples, if the folder holds mirror images.
    """

    def __init__(
        self,
        latents: LatentFolder,
        *,
        objective: ObjectiveConfig,
        batch_size: int,
        null_label: int,
        seed: int,
        flip: bool,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.latents, self.objective, self.null_label, self.seed = latents, objective, null_label, seed
        self.batch_size = batch_size
        self.flip = flip and latents.has_flips
        share = batch_size // world_size
        self.positions = range(rank * share, (rank + 1) * share)
        self.order = EpochOrder(len(latents), seed)
        self.normalisation = latents.spec.normalisation

    def indices(self, step: int) -> list[int]:
        """Which images this process's share of step `step` (from 0) holds."""
        start = step * self.batch_size
        taken = self.order.indices(start + self.positions.start, start + self.positions.stop)
        return [int(i) for i in taken]

    def batch(self, step: int) -> Batch:
        """This process's share of step `step`, on the CPU."""
        generators = [generator(self.seed, "sample", step, position) for position in self.positions]
        t = torch.cat([draw_times(self.objective, generator=g) for g in generators])
        coins = torch.stack([torch.rand(2, generator=g) for g in generators])  # flip, label drop
        flips = (coins[:, 0] < 0.5).tolist() if self.flip else None
        moments, labels = self.latents.batch(self.indices(step), flip=flips)
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        draws = torch.stack([torch.randn(2, *shape, generator=g) for g in generators])  # noise, posterior
        latents = draw_latents(moments, draws[:, 1], self.normalisation)
        dropped = coins[:, 1] < self.objective.label_dropout
        return Batch(latents, draws[:, 0].contiguous(), t, labels.masked_fill(dropped, self.null_label))

    def stream(self, start: int, stop: int, *, device: torch.device) -> Iterator[tuple[int, Batch]]:
        """`(step, batch on device)` from `start` to `stop - 1`, made ahead of time in a thread."""
        made: queue.Queue[tuple[int, Batch] | BaseException | None] = queue.Queue(maxsize=3)
        stopping = threading.Event()

        def put(item: tuple[int, Batch] | BaseException | None) -> None:
            while not stopping.is_set():
                try:
                    made.put(item, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def make() -> None:
            try:
                for step in range(start, stop):
                    if stopping.is_set():
                        return
                    put((step, self.batch(step)))
                put(None)
            except BaseException as error:  # handed to the consumer, which raises it
                put(error)

        thread = threading.Thread(target=make, daemon=True, name="batches")
        thread.start()
        try:
            while (item := made.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                step, batch = item
                yield step, batch.to(device)
        finally:
            stopping.set()
            thread.join()
