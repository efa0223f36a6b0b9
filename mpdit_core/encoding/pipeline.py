"""The pipeline of encoding: threads decode ahead, and the images of a batch are encoded into the rows of a shard.

The encoder is an autoencoder, or a teacher whose features are stored beside the latents.

On a CPU the thread that decodes an image also encodes it: this is faster than a batch over all cores (1.6 times for
the Stable Diffusion autoencoder on two), needs little memory, and gives the same bytes for any number of cores. On a
GPU a batch is one call, which runs while the latents of the previous one are fetched. Pillow and torch release Python's
lock, so threads suffice, and nothing is copied between processes. Batches and shards cover fixed ranges of items: the
content of a shard depends neither on the process that makes it nor on the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from mpdit_core.data.autoencoders import LoadedAutoencoder
from mpdit_core.data.images import Mode, prepare
from mpdit_core.data.manifest import EncodingPlan, SkippedItem, TeacherPlan
from mpdit_core.data.shards import ShardContent
from mpdit_core.data.sources import Decode, read_items
from mpdit_core.errors import UserError
from mpdit_core.protocols import Dataset, Item
from mpdit_core.runtime.concurrency import produced_ahead
from mpdit_core.size import Size

BATCHES_AHEAD = 3


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What makes the rows of shards from pictures.

    Args:
        device: where it computes; on a CPU each image is encoded by itself.
        mode: mode of the pictures, as Pillow names it.
        plan: of what is stored: its shape and type for each image, and the names of the tensors.
        encode: gives what is stored, [n, *plan.stored_shape], for images uint8 [n, K, H, W].
    """

    device: torch.device
    mode: Mode
    plan: EncodingPlan | TeacherPlan
    encode: Callable[[Tensor], Tensor]

    @property
    def takes_batches(self) -> bool:
        return self.device.type != "cpu"


def latents_encoder(autoencoder: LoadedAutoencoder, plan: EncodingPlan) -> Encoder:
    device, mode, encode = autoencoder.encode_device, autoencoder.mode, autoencoder.encode
    return Encoder(device=device, mode=mode, plan=plan, encode=encode)


@dataclass(frozen=True)
class Encoded:
    """A batch of items was encoded. `content` is set with the last batch of a shard."""

    items: int
    skipped: list[SkippedItem]
    content: ShardContent | None


class ShardBuilder:
    """The arrays of one shard, with a row for each of its items; rows of skipped items are removed at the end."""

    def __init__(self, plan: EncodingPlan, number: int, encoder: Encoder):
        self.number = number
        self.start, self.stop = plan.shard_range(number)
        rows = (len(self), *encoder.plan.stored_shape)
        self.tensors = {name: np.empty(rows, encoder.plan.dtype) for name in encoder.plan.tensor_names}
        self.labels = np.zeros(len(self), "<i8")
        self.is_good = np.ones(len(self), dtype=bool)
        self.skipped: list[SkippedItem] = []

    def __len__(self) -> int:
        return self.stop - self.start

    def store(self, row: int, encoded: Sequence[Tensor]) -> None:
        """Writes `encoded`, one array [n, …] for each tensor, into rows `row` to `row + n`."""
        for tensor, values in zip(self.tensors.values(), encoded, strict=True):
            torch.from_numpy(tensor)[row : row + len(values)].copy_(values)

    def content(self) -> ShardContent:
        kept = self.is_good if self.skipped else slice(None)  # a slice copies nothing
        tensors = {name: tensor[kept] for name, tensor in self.tensors.items()}
        return ShardContent(self.number, tensors, self.labels[kept], self.skipped)


@dataclass(frozen=True)
class Batch:
    """Consecutive items of a shard, which begin at `row`."""

    shard: ShardBuilder
    row: int
    items: Sequence[Item]
    pictures: np.ndarray | None  # [n, H, W, K] uint8, where the whole batch is encoded at once
    reasons: Iterator[str | None]  # for each item, once it is decoded: why it cannot be used, if so

    @property
    def is_last(self) -> bool:
        return self.row + len(self.items) == len(self.shard)

    def wait(self) -> list[SkippedItem]:
        """Waits until all items are decoded; returns those that cannot be used, whose rows are dropped."""
        skipped = []
        for place, (item, reason) in enumerate(zip(self.items, self.reasons, strict=True)):
            if reason is not None:
                self.shard.is_good[self.row + place] = False
                skipped.append(SkippedItem(key=item.key, reason=reason))
        self.shard.skipped += skipped
        return skipped


def encode_shards(
    source: Dataset, plan: EncodingPlan, shards: Sequence[int], *, encoder: Encoder, workers: int, skip_faulty: bool
) -> Iterator[Encoded]:
    """Encodes `shards` one after the other.

    Raises:
        UserError: an image cannot be used and `skip_faulty` is off (`faulty-image`), or no class has its label
            (`no-such-class`).
    """
    under_way = 1 if encoder.takes_batches else 0  # a GPU computes one batch while the previous one is fetched
    waiting: deque[tuple[Batch, list[SkippedItem], list[Tensor]]] = deque()

    def finished() -> Encoded:
        batch, skipped, encoded = waiting.popleft()
        if encoder.takes_batches:
            batch.shard.store(batch.row, encoded)
        return Encoded(len(batch.items), skipped, batch.shard.content() if batch.is_last else None)

    with _decoding_pool(workers, one_thread_each=not encoder.takes_batches) as pool:
        batches = _submitted(source, plan, shards, encoder=encoder, pool=pool)
        with closing(produced_ahead(batches, ahead=BATCHES_AHEAD, name="feed")) as batches:
            for batch in batches:
                skipped = batch.wait()
                if skipped and not skip_faulty:
                    while waiting:  # earlier batches may complete a shard
                        yield finished()
                    raise _faulty(skipped[0])
                encoded = [] if batch.pictures is None else encode_pictures(encoder, batch.pictures)
                waiting.append((batch, skipped, encoded))
                if len(waiting) > under_way:
                    yield finished()
            while waiting:
                yield finished()


def encode_pictures(encoder: Encoder, pictures: np.ndarray) -> list[Tensor]:
    """What is stored for `pictures` uint8 [n, H, W, K], on the device that encodes: [n, …], and the same for their
    mirror images if these are stored too."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    if encoder.device.type == "cuda":
        images = images.pin_memory().to(encoder.device, non_blocking=True)
    parts = (images, images.flip(-1)) if encoder.plan.flip else (images,)
    return [encoder.encode(part) for part in parts]


def _submitted(
    source: Dataset, plan: EncodingPlan, shards: Sequence[int], *, encoder: Encoder, pool: ThreadPoolExecutor
) -> Iterator[Batch]:
    """The batches of `shards` in order. When a batch is yielded, `pool` already has the tasks that decode it."""
    for number in shards:
        shard = ShardBuilder(plan, number, encoder)
        reading = read_items(source, shard.start, shard.stop)
        for row in range(0, len(shard), plan.batch_size):
            size = min(plan.batch_size, len(shard) - row)
            items, decoders = zip(*(next(reading) for _ in range(size)), strict=True)
            _require_labels(items, plan)
            shard.labels[row : row + size] = [item.label for item in items]
            shape = (size, *plan.resolution, len(encoder.mode))
            pictures = np.zeros(shape, np.uint8) if encoder.takes_batches else None
            places = repeat(None) if pictures is None else pictures
            prepare_row = partial(_prepare_row, encoder, plan.resolution, shard)
            yield Batch(shard, row, items, pictures, pool.map(prepare_row, range(row, row + size), decoders, places))


def _prepare_row(
    encoder: Encoder, resolution: Size, shard: ShardBuilder, row: int, decode: Decode, pixels: np.ndarray | None
) -> str | None:
    """Decodes an item into its `pixels` [H, W, K] of a batch, or else encodes it too; returns why it cannot be used."""
    try:
        picture = prepare(decode(), resolution, encoder.mode)
    except UserError as error:  # a plugin that fails may raise this too
        return error.what
    if pixels is not None:
        pixels[:] = picture
    else:
        shard.store(row, encode_pictures(encoder, picture[None].copy()))
    return None


@contextmanager
def _decoding_pool(workers: int, *, one_thread_each: bool) -> Iterator[ThreadPoolExecutor]:
    threads = torch.get_num_threads()
    initializer = partial(torch.set_num_threads, 1) if one_thread_each else None
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode", initializer=initializer)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # later threads would inherit the setting of the pool's threads


def _faulty(item: SkippedItem) -> UserError:
    return UserError(
        f"{item.key} cannot be used: {item.reason}",
        code="faulty-image",
        expected="images that Pillow can decode",
        remedy="repair or remove it, or use --on-error skip to continue without such images; finished shards are kept",
    )


def _require_labels(items: Sequence[Item], plan: EncodingPlan) -> None:
    for item in items:
        if not 0 <= item.label <= plan.last_label:
            raise UserError(
                f"{item.key} has label {item.label}, but there are {len(plan.class_names)} classes",
                code="no-such-class",
                expected=f"0 to {plan.last_label}",
            )
