"""The pass over images that evaluations and references share: blocks of images → features → sums, in all processes.

Images come in fixed blocks, and blocks of about 4,096 images in total form a chunk. The processes share the blocks of a
chunk; when its features are complete, every process adds them in order of index. Blocks, chunks and order do not depend
on the number of processes or on interruptions, so the sums have the same bits in every case.

A signal to stop takes effect between blocks. Finished blocks are saved (progress.py), and the same command resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mpdit_core.api import FeatureExtractor, Features
from mpdit_core.data.autoencoders import as_rgb
from mpdit_core.errors import Interrupted
from mpdit_core.evaluation.images import ImageSource
from mpdit_core.evaluation.progress import BlockFeatures, Cost, Layout, SavedProgress
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.features import extract
from mpdit_core.pictures import save_tile
from mpdit_core.reporting import Note, Progress, Reporter
from mpdit_core.runtime.concurrency import produced_ahead
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.files import user_errors
from mpdit_core.runtime.signals import StopRequest
from mpdit_core.sampling import Generator

FINISHED_BLOCK = 64  # finished images per block
READ_AHEAD = 2  # blocks


@dataclass(frozen=True)
class ImageBlock:
    """Block `number`: images [n, 3, H, W] uint8 on the CPU, and the evaluations and passes spent per image."""

    number: int
    images: Tensor
    nfe: float = 0
    passes: float = 0


class Blocks(Protocol):
    """`count` images in blocks of `size`; `read` yields the blocks with these numbers in order."""

    @property
    def count(self) -> int: ...

    @property
    def size(self) -> int: ...

    def read(self, numbers: Sequence[int]) -> Iterator[ImageBlock]: ...


@dataclass(frozen=True)
class FinishedBlocks:
    """The first `count` images of a source, read ahead in a thread."""

    source: ImageSource
    count: int
    size: int = FINISHED_BLOCK

    def read(self, numbers: Sequence[int]) -> Iterator[ImageBlock]:
        return produced_ahead(map(self._block, numbers), ahead=READ_AHEAD, name="read")

    def _block(self, number: int) -> ImageBlock:
        indices = range(number * self.size, min((number + 1) * self.size, self.count))
        return ImageBlock(number, self.source.batch(indices))


@dataclass(frozen=True)
class SampledBlocks:
    """Images that are sampled when they are read, and also written to the folder `keep` if it is given."""

    generator: Generator
    keep: Path | None = None

    @property
    def count(self) -> int:
        return self.generator.num_samples

    @property
    def size(self) -> int:
        return self.generator.options.batch_size

    def read(self, numbers: Sequence[int]) -> Iterator[ImageBlock]:
        for batch in self.generator.batches(numbers):
            if self.keep is not None:
                _write_images(self.keep, batch.indices, batch.images)
            yield ImageBlock(batch.block, as_rgb(batch.images), batch.nfe, batch.passes)


@contextmanager
def collected(
    blocks: Blocks,
    extractor: FeatureExtractor,
    accumulator: FeatureAccumulator,
    *,
    folder: Path,
    world: World,
    report: Reporter,
    task: str,
    needs_logits: bool = True,
) -> Iterator[Cost]:
    """Adds the features of all `blocks` to `accumulator`; yields the cost per image.

    All processes of `world` call it. Progress is kept in `folder` until the body has written the result elsewhere.

    Raises:
        Interrupted: a signal came; all finished blocks are saved.
        UserError: an image that cannot be read, or features that break their contract.
    """
    layout = Layout(blocks.count, blocks.size)
    progress = SavedProgress(folder, accumulator, layout, name=f"{world.rank}")
    world.barrier()  # every process has read the folder before the first one writes
    if progress.images_done:
        report(Note(text=f"resuming: {progress.images_done} of {layout.count} images were measured before"))

    def features(images: Tensor) -> Features:
        pool, spatial, logits = extract(extractor, images.to(accumulator.device))
        return Features(
            pool.cpu(),
            spatial if spatial is None else spatial.cpu(),
            logits.cpu() if logits is not None and needs_logits else None,
        )

    def measure_share(stop: StopRequest) -> None:
        """Measures this process's blocks of the chunk, until a signal comes."""
        done, todo = progress.images_done, progress.blocks_to_do()
        for block in blocks.read(todo[world.rank :: world.size]):
            progress.add(block.number, BlockFeatures(features(block.images), block.nfe, block.passes))
            done += len(block.images) * world.size
            report(Progress(task=task, done=min(done, layout.count), total=layout.count, unit="images"))
            progress.save_if_due(is_main=world.is_main)
            if stop.received:
                return

    with StopRequest() as stop:
        while not progress.complete:
            measure_share(stop)
            received = next((signum for signum in world.gather_objects(stop.received) if signum), None)
            if received is not None:  # by any process: then all stop
                progress.save(is_main=world.is_main)
                raise Interrupted(received)
            progress.close_chunk(world.gather_objects(progress.fresh))
            progress.save_if_due(is_main=world.is_main)
    yield progress.cost
    if world.is_main:
        progress.remove()


def _write_images(folder: Path, indices: Sequence[int], images: Tensor) -> None:
    """Raises `UserError` where they cannot be written."""
    with user_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in zip(indices, images, strict=True):
            save_tile(image, folder / f"{index:06d}.png")
