"""The pass over images that evaluations and references share: blocks of images → features → sums, in all processes.

Images come in fixed blocks, and blocks of about 4,096 images in total form a chunk. The processes share the blocks of a
chunk; when its features are complete, every process adds them in order of index. Blocks, chunks and order do not depend
on the number of processes or on interruptions, so the sums have the same bits in every case.

A signal to stop takes effect between blocks. Finished blocks are saved (progress.py), and the same command resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from mpdit_core.data.autoencoders import as_rgb
from mpdit_core.errors import Interrupted
from mpdit_core.evaluation.images import ImageSource
from mpdit_core.evaluation.progress import BlockFeatures, Cost, SavedProgress
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.features import extract
from mpdit_core.pictures import save_tile
from mpdit_core.protocols import FeatureExtractor, Features
from mpdit_core.reporting import Note, Progress, Reporter
from mpdit_core.runtime.concurrency import produced_ahead
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.files import user_errors
from mpdit_core.runtime.signals import StopRequest
from mpdit_core.sampling import Generator

FINISHED_BLOCK = 64  # finished images per block
READ_AHEAD = 2  # blocks

T = TypeVar("T")


@dataclass(frozen=True)
class ImageBlock:
    """Block `number`: images [n, 3, H, W] uint8 on the CPU, and the evaluations and passes spent per image."""

    number: int
    images: Tensor
    nfe: float = 0
    passes: float = 0


@dataclass(frozen=True)
class Blocks:
    """Images in blocks of `size`; `read` yields the blocks with these numbers in order."""

    size: int
    read: Callable[[Sequence[int]], Iterator[ImageBlock]]


def finished_blocks(source: ImageSource, count: int) -> Blocks:
    """The first `count` images of a source, read ahead in a thread."""

    def block(number: int) -> ImageBlock:
        start = number * FINISHED_BLOCK
        return ImageBlock(number, source.batch(range(start, min(start + FINISHED_BLOCK, count))))

    return Blocks(FINISHED_BLOCK, lambda numbers: produced_ahead(map(block, numbers), ahead=READ_AHEAD, name="read"))


def sampled_blocks(generator: Generator, *, keep: Path | None) -> Blocks:
    """Images that are sampled when they are read, and also written to the folder `keep` if it is given."""

    def read(numbers: Sequence[int]) -> Iterator[ImageBlock]:
        for block in generator.batches(numbers):
            if keep is not None:
                with user_errors(keep):
                    keep.mkdir(parents=True, exist_ok=True)
                    for index, image in zip(block.indices, block.images, strict=True):
                        save_tile(image, keep / f"{index:06d}.png")
            yield ImageBlock(block.number, as_rgb(block.images), block.nfe, block.passes)

    return Blocks(generator.options.batch_size, read)


def collect(
    blocks: Blocks,
    extractor: FeatureExtractor,
    accumulator: FeatureAccumulator,
    *,
    folder: Path,
    world: World,
    report: Reporter,
    task: str,
    finish: Callable[[Cost], T],
    needs_logits: bool = True,
) -> T:
    """Adds the features of all `blocks` to `accumulator`, and returns what `finish` makes of them.

    All processes of `world` call it.

    Args:
        folder: where progress is kept, until `finish` has written the result elsewhere.
        finish: called in the main process, with the cost per image.

    Raises:
        Interrupted: a signal came; all finished blocks are saved.
        UserError: an image that cannot be read, or features that break their contract.
    """
    count = accumulator.count
    progress = SavedProgress(folder, accumulator, block_size=blocks.size, world=world)
    world.barrier()  # every process has read the folder before the first one writes
    if progress.images_done:
        report(Note(text=f"resuming: {progress.images_done} of {count} images were measured before"))
    with StopRequest() as stop:
        while not progress.complete:
            done, todo = progress.images_done, progress.blocks_to_do()
            for block in blocks.read(todo[world.rank :: world.size]):
                found = extract(extractor, block.images.to(accumulator.device))
                features = Features(
                    found.pool.cpu(),
                    found.spatial if found.spatial is None else found.spatial.cpu(),
                    found.logits.cpu() if found.logits is not None and needs_logits else None,
                )
                progress.fresh[block.number] = BlockFeatures(features, block.nfe, block.passes)
                done += len(block.images) * world.size
                report(Progress(task=task, done=min(done, count), total=count, unit="images"))
                progress.save_if_due()
                if stop.received:
                    break
            received = next((signum for signum in world.gather_objects(stop.received) if signum), None)
            if received is not None:  # by any process: then all stop
                progress.save()
                raise Interrupted(received)
            progress.close_chunk()
            progress.save_if_due()
    result = world.on_main(lambda: finish(progress.cost))
    if world.is_main:
        progress.remove()
    return result
