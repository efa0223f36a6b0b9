"""Encoding with `pixels`: the thread that decodes a picture writes its moments where the shard is collected.

There is no encoder to feed, so nothing else is copied. The memory of a shard is used again once it is written: asking
the system for new memory costs nearly as much as decoding does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np

from mpdit_core.api import Dataset
from mpdit_core.data.autoencoders import PixelAutoencoder
from mpdit_core.data.manifest import EncodingPlan, SkippedItem
from mpdit_core.data.shards import ShardContent
from mpdit_core.encoding.pipeline import Encoded, ItemBatch, check_labels, decode_ahead, faulty

SHARDS_IN_MEMORY = 3  # one is written, one completed, one begun


class ShardMemory:
    """Moments float16 [n, 2C, h, w] of one shard and of mirror images, if stored, and how often each value occurs."""

    def __init__(self, plan: EncodingPlan, autoencoder: PixelAutoencoder):
        shape = (min(plan.shard_size, plan.source.items), *plan.moments_shape)
        self.autoencoder = autoencoder
        self.moments = np.zeros(shape, dtype=np.float16)
        self.flipped = np.zeros(shape, dtype=np.float16) if plan.flip else None
        self.counts = np.zeros((autoencoder.spec.channels, 256), dtype=np.int64)
        self.good: list[int] = []
        self.labels: list[int] = []
        self.skipped: list[SkippedItem] = []
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forgets the shard it held. The moments stay: each is overwritten, and spreads are zero always."""
        self.counts[:] = 0
        self.good, self.labels, self.skipped = [], [], []

    def store(self, row: int, picture: np.ndarray) -> None:
        counts = self.autoencoder.encode_picture(picture, self.moments[row])
        if self.flipped is not None:
            self.autoencoder.encode_picture(picture[:, ::-1], self.flipped[row])
            counts = 2 * counts
        with self._lock:
            self.counts += counts

    def content(self, number: int, memories: Memories) -> ShardContent:
        rows = slice(len(self.good)) if self.good == list(range(len(self.good))) else self.good
        values = self.autoencoder.lookup.astype(np.float64)
        return ShardContent(
            number,
            self.moments[rows],
            None if self.flipped is None else self.flipped[rows],
            np.array(self.labels, "<i8"),
            self.skipped,
            sums=(tuple((self.counts * values).sum(1).tolist()), tuple((self.counts * values**2).sum(1).tolist())),
            release=lambda: memories.give_back(self),
        )


class Memories:
    """`SHARDS_IN_MEMORY` of them, taken by the thread that hands out the items, given back by the one that writes."""

    def __init__(self, plan: EncodingPlan, autoencoder: PixelAutoencoder):
        self._plan, self._autoencoder = plan, autoencoder
        self._free: queue.Queue[ShardMemory | None] = queue.Queue()
        self._made = 0

    def take(self) -> ShardMemory:
        if self._made < SHARDS_IN_MEMORY and self._free.empty():
            self._made += 1
            return ShardMemory(self._plan, self._autoencoder)
        memory = self._free.get()
        if memory is None:
            raise RuntimeError("no more shards are wanted")
        return memory

    def give_back(self, memory: ShardMemory) -> None:
        memory.clear()
        self._free.put(memory)

    def close(self) -> None:
        """Ends a `take` that waits."""
        self._free.put(None)


class PixelBatch(ItemBatch):
    """Items whose moments go into the memory of their shard."""

    memory: ShardMemory
    first: int  # item of the shard

    def store(self, place: int, picture: np.ndarray) -> None:
        self.memory.store(self.start - self.first + place, picture)


def encode_pixels(
    source: Dataset,
    plan: EncodingPlan,
    shards: Sequence[int],
    *,
    autoencoder: PixelAutoencoder,
    workers: int,
    skip_faulty: bool,
) -> Iterator[Encoded]:
    """As `encode_shards`, which see."""
    memories = Memories(plan, autoencoder)
    current: dict[int, ShardMemory] = {}

    def make(shard: int, start: int, stop: int) -> PixelBatch:
        first = plan.shard_range(shard)[0]
        if start == first:
            current[shard] = memories.take()
        batch = PixelBatch(shard, start, stop)
        batch.memory, batch.first = current[shard], first
        return batch

    with closing(memories):
        for batch in decode_ahead(source, plan, shards, workers=workers, make=make):
            good, skipped = batch.wait()
            if skipped and not skip_faulty:
                raise faulty(skipped[0])
            check_labels([batch.items[n] for n in good], plan)
            memory = batch.memory
            memory.good += [batch.start - batch.first + n for n in good]
            memory.labels += [batch.items[n].label for n in good]
            memory.skipped += skipped
            content = None
            if batch.stop == plan.shard_range(batch.shard)[1]:
                content = current.pop(batch.shard).content(batch.shard, memories)
            yield Encoded(batch.stop - batch.start, skipped, content)
