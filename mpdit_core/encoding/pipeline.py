"""The moving parts of encoding: threads decode ahead, this thread encodes, another thread writes.

Pillow releases Python's lock while it decodes and scales, so threads are enough, and nothing has to be copied between
processes. Batches and shards cover fixed ranges of items: what a shard holds does not depend on who makes it when.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mpdit_core.api import Dataset, Item
from mpdit_core.data.autoencoders import Autoencoder
from mpdit_core.data.images import FaultyImageError, prepare
from mpdit_core.data.manifest import EncodingPlan, SkippedItem
from mpdit_core.data.shards import ShardContent
from mpdit_core.data.sources import Decode, read_items
from mpdit_core.errors import UserError

BATCHES_AHEAD = 3

Pending = Callable[[], tuple[Tensor, Tensor | None]]


@dataclass
class ItemBatch:
    """Items `start` to `stop` of shard `shard`; decoded when all `faults` are there."""

    shard: int
    start: int
    stop: int
    items: list[Item] = field(default_factory=list)
    faults: list[Future[FaultyImageError | None]] = field(default_factory=list)

    def store(self, place: int, picture: np.ndarray) -> None:
        """Keeps the picture [H, W, 3] uint8 of item `place` of the batch; called in a thread that decodes."""
        raise NotImplementedError

    def wait(self) -> tuple[list[int], list[SkippedItem]]:
        """(places of the good pictures, the items left out), once all are decoded."""
        reasons = [future.result() for future in self.faults]
        skipped = [
            SkippedItem(key=item.key, reason=reason.what)
            for item, reason in zip(self.items, reasons, strict=True)
            if reason is not None
        ]
        return [n for n, reason in enumerate(reasons) if reason is None], skipped


class PictureBatch(ItemBatch):
    """Items whose pictures are collected for the encoder: `images` [n, H, W, 3] uint8."""

    images: np.ndarray

    def store(self, place: int, picture: np.ndarray) -> None:
        self.images[place] = picture


Batch = TypeVar("Batch", bound=ItemBatch)


def decode_ahead(
    source: Dataset,
    plan: EncodingPlan,
    shards: Sequence[int],
    *,
    workers: int,
    make: Callable[[int, int, int], Batch],
) -> Iterator[Batch]:
    """The batches of `shards` in order, decoded by `workers` threads, a few batches ahead of the one yielded.

    `make(shard, start, stop)` gives an empty batch.
    """
    batches: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=BATCHES_AHEAD)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def put(value: Batch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                batches.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def feed() -> None:
        try:
            for shard in shards:
                for batch, decoders in _batches(source, plan, shard, make):
                    batch.faults = [
                        pool.submit(_decode_into, batch, place, decode, plan.resolution)
                        for place, decode in enumerate(decoders)
                    ]
                    if not put(batch):
                        return
            put(None)
        except BaseException as error:
            put(error)

    feeder = threading.Thread(target=feed, name="feed", daemon=True)
    feeder.start()
    try:
        while (batch := batches.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _batches(
    source: Dataset, plan: EncodingPlan, shard: int, make: Callable[[int, int, int], Batch]
) -> Iterator[tuple[Batch, list[Decode]]]:
    start, end = plan.shard_range(shard)
    reading = read_items(source, start, end)
    for first in range(start, end, plan.batch_size):
        batch = make(shard, first, min(first + plan.batch_size, end))
        pairs = [next(reading) for _ in range(batch.start, batch.stop)]
        batch.items = [item for item, _ in pairs]
        yield batch, [decode for _, decode in pairs]


def _decode_into(batch: ItemBatch, place: int, decode: Decode, resolution: int) -> FaultyImageError | None:
    try:
        picture = prepare(decode(), resolution)
    except UserError as error:  # a plugin's images may raise this too
        return FaultyImageError(error.what)
    batch.store(place, picture)
    return None


class ShardBuilder:
    """Collects the moments of one shard, batch by batch."""

    def __init__(self, plan: EncodingPlan, number: int):
        start, stop = plan.shard_range(number)
        self.number, self.stop = number, stop
        self.moments = np.empty((stop - start, *plan.moments_shape), dtype=np.float16)
        self.flipped = np.empty_like(self.moments) if plan.flip else None
        self.labels: list[int] = []
        self.skipped: list[SkippedItem] = []

    def add(self, moments: Tensor, flipped: Tensor | None, items: Sequence[Item], skipped: list[SkippedItem]) -> None:
        rows = slice(len(self.labels), len(self.labels) + len(items))
        if items:
            torch.from_numpy(self.moments)[rows].copy_(moments)
            if self.flipped is not None and flipped is not None:
                torch.from_numpy(self.flipped)[rows].copy_(flipped)
        self.labels += [item.label for item in items]
        self.skipped += skipped

    def content(self) -> ShardContent:
        count = len(self.labels)
        flipped = None if self.flipped is None else self.flipped[:count]
        return ShardContent(self.number, self.moments[:count], flipped, np.array(self.labels, "<i8"), self.skipped)


@dataclass(frozen=True)
class Encoded:
    """A batch went through the encoder. `content` is set with the last batch of a shard."""

    images: int
    skipped: list[SkippedItem]
    content: ShardContent | None


def encode_shards(
    source: Dataset,
    plan: EncodingPlan,
    shards: Sequence[int],
    *,
    autoencoder: Autoencoder,
    workers: int,
    skip_faulty: bool,
) -> Iterator[Encoded]:
    """Encodes `shards` one after the other.

    Raises:
        UserError: an image cannot be used and `skip_faulty` is off, or has a label that no class has.
    """
    waiting: deque[tuple[PictureBatch, list[Item], list[SkippedItem], Pending]] = deque()
    builder: ShardBuilder | None = None

    def collect() -> Encoded:
        nonlocal builder
        batch, items, skipped, pending = waiting.popleft()
        moments, flipped = pending()
        if builder is None or builder.number != batch.shard:
            builder = ShardBuilder(plan, batch.shard)
        builder.add(moments, flipped, items, skipped)
        content = builder.content() if batch.stop == builder.stop else None
        return Encoded(batch.stop - batch.start, skipped, content)

    def make(shard: int, start: int, stop: int) -> PictureBatch:
        batch = PictureBatch(shard, start, stop)
        batch.images = np.empty((stop - start, plan.resolution, plan.resolution, 3), dtype=np.uint8)
        return batch

    with Encoder(autoencoder, flip=plan.flip) as encoder:
        for batch in decode_ahead(source, plan, shards, workers=workers, make=make):
            good, skipped = batch.wait()
            if skipped and not skip_faulty:
                while waiting:  # what came before it may complete a shard
                    yield collect()
                raise faulty(skipped[0])
            items = [batch.items[n] for n in good]
            images = batch.images if not skipped else batch.images[good]
            check_labels(items, plan)
            waiting.append((batch, items, skipped, encoder.submit(images)))
            while len(waiting) > encoder.depth:
                yield collect()
        while waiting:
            yield collect()


class Encoder:
    """Keeps the device busy with `depth` batches beyond the one that is waited for.

    On a GPU a batch is one call, and runs while the last one's moments are fetched. On a CPU every image is a call of
    its own in one thread, as many at once as there are cores: faster than a batch over all cores (1.6 times for the
    Stable Diffusion autoencoder on two), small in memory, and the same bytes for any number of cores.
    """

    def __init__(self, autoencoder: Autoencoder, *, flip: bool):
        self.autoencoder, self.flip = autoencoder, flip
        self.threads = torch.get_num_threads()
        self.on_cpu = autoencoder.device.type == "cpu"
        self.depth = 2 if self.on_cpu else 1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Encoder:
        if self.on_cpu:
            self._pool = ThreadPoolExecutor(self.threads, "encode", initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self.threads)  # what a thread of the pool sets, later threads would inherit

    def submit(self, images: np.ndarray) -> Pending:
        """A function that waits for the moments of `images` [n, H, W, 3], and of their mirror images."""
        if self._pool is None:
            result = encode_batch(self.autoencoder, images, flip=self.flip)
            return lambda: result
        parts = np.split(images, max(1, len(images)))
        futures = [self._pool.submit(encode_batch, self.autoencoder, part, flip=self.flip) for part in parts]

        def wait() -> tuple[Tensor, Tensor | None]:
            done = [future.result() for future in futures]
            moments = torch.cat([part for part, _ in done])
            return moments, torch.cat([part for _, part in done if part is not None]) if self.flip else None

        return wait


def encode_batch(autoencoder: Autoencoder, images: np.ndarray, *, flip: bool) -> tuple[Tensor, Tensor | None]:
    """Moments float16 [n, 2C, h, w] of pictures [n, H, W, 3] uint8, and of their mirror images, on the device."""
    if len(images) == 0:
        empty = torch.empty(0)
        return empty, empty if flip else None
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    if autoencoder.device.type == "cuda":
        pixels = pixels.pin_memory().to(autoencoder.device, non_blocking=True)
    moments = autoencoder.encode(pixels).half()
    return moments, autoencoder.encode(pixels.flip(-1)).half() if flip else None


def faulty(item: SkippedItem) -> UserError:
    return UserError(
        f"{item.key} cannot be used: {item.reason}",
        expected="images that Pillow can decode",
        remedy="mend or remove it, or --on-error skip to go on without such images; finished shards are kept",
    )


def check_labels(items: Sequence[Item], plan: EncodingPlan) -> None:
    for item in items:
        if not 0 <= item.label < len(plan.class_names):
            raise UserError(
                f"{item.key} has label {item.label}, but there are {len(plan.class_names)} classes",
                expected=f"0 to {len(plan.class_names) - 1}",
            )
