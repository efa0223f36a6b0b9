"""The progress of a pass over images, kept on disk so that a kill loses at most a minute.

    state.safetensors                  the sums over the complete chunks (FeatureAccumulator.state)
    features-CHUNK-NAME.safetensors    features of finished blocks of an incomplete chunk; one per process and session

The sums are written under a temporary name and renamed, and only then are files of features removed. So whenever the
process is killed, an image is in the sums, in a file of features of a later chunk, or not done. A file that is damaged
or has another layout of blocks and chunks is ignored (checked_tensors.py checks every bit).
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mpdit_core.errors import UserError
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.protocols import Features
from mpdit_core.reporting import Note, Reporter
from mpdit_core.runtime.checked_tensors import read_checked, write_checked
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.files import remove_leftovers, user_errors
from mpdit_core.runtime.locks import locked

FORMAT = 4
CHUNK_IMAGES = 4096
SECONDS_BETWEEN_SAVES = 60.0
STATE = "state.safetensors"


@contextmanager
def locked_by_main(folder: Path, world: World, *, wait: float = 0, report: Reporter) -> Iterator[None]:
    """Locks `folder` against other commands (the main process does), and removes it at the end if it is empty.

    Args:
        wait: seconds to wait for another command that holds it.

    Raises:
        UserError: another command holds it (`folder-in-use`).
    """
    if not world.is_main:
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except UserError as error:
            if error.code != "folder-in-use" or not wait:
                raise
            report(Note(text="another command is measuring the same images; waiting for it"))
            stack.enter_context(locked(folder, seconds=wait))
        yield
    with suppress(OSError):
        folder.rmdir()


class Cost(NamedTuple):
    """The cost per image: network evaluations that a sampler asked for, and passes through a network."""

    nfe: float
    passes: float


@dataclass(frozen=True)
class BlockFeatures:
    """Features of one block on the CPU, and the evaluations and passes spent per image."""

    features: Features
    nfe: float
    passes: float

    def __len__(self) -> int:
        return len(self.features.pool)


class SavedProgress:
    """The progress of one pass, in memory and in `folder`, whose files from earlier sessions are read at the start.

    Args:
        accumulator: continued from the saved sums.
        block_size: images per block; the last block, like the last chunk, may be smaller.
    """

    def __init__(self, folder: Path, accumulator: FeatureAccumulator, *, block_size: int, world: World):
        self.folder, self.accumulator, self.world = folder, accumulator, world
        self.count = accumulator.count
        num_blocks, per_chunk = math.ceil(self.count / block_size), max(1, CHUNK_IMAGES // block_size)
        self.chunks = [range(first, min(first + per_chunk, num_blocks)) for first in range(0, num_blocks, per_chunk)]
        self.chunk, self.spent = 0, Cost(0, 0)  # number of chunks in the sums, and the total cost of their images
        self.earlier: dict[int, BlockFeatures] = {}  # blocks not in the sums that earlier sessions finished
        self.fresh: dict[int, BlockFeatures] = {}  # those of the current chunk that this process finished
        self._layout = {"layout": f"{FORMAT} {self.count} {block_size} {per_chunk}"}  # stored in every file
        self._name = f"{world.rank}-{uuid.uuid4().hex[:8]}"
        self._saved_chunk, self._saved_blocks, self._saved_at = 0, 0, time.monotonic()
        with user_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._read()

    @property
    def complete(self) -> bool:
        return self.chunk == len(self.chunks)

    @property
    def cost(self) -> Cost:
        """The cost of the images in the sums, as means."""
        return Cost(*(total / self.count for total in self.spent))

    @property
    def images_done(self) -> int:
        """Images in the sums and in the blocks known to this process."""
        return self.accumulator.done + sum(len(block) for block in [*self.earlier.values(), *self.fresh.values()])

    def blocks_to_do(self) -> list[int]:
        """The blocks of the current chunk that no earlier session finished; the same in every process."""
        return [block for block in self.chunks[self.chunk] if block not in self.earlier]

    def close_chunk(self) -> None:
        """Adds the current chunk to the sums: the blocks of every process, in order."""
        for part in self.world.gather_objects(self.fresh):
            self.earlier |= part
        ordered = [self.earlier.pop(number) for number in self.chunks[self.chunk]]
        self.accumulator.add(_joined([block.features for block in ordered]))
        self.spent = Cost(
            nfe=self.spent.nfe + sum(block.nfe * len(block) for block in ordered),
            passes=self.spent.passes + sum(block.passes * len(block) for block in ordered),
        )
        self.chunk += 1
        self.fresh, self._saved_blocks = {}, 0

    def save_if_due(self) -> None:
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Writes what is not on disk yet: every process its blocks, the main process the sums."""
        if len(self.fresh) > self._saved_blocks:
            self._write_features()
        if self.world.is_main and self.chunk > self._saved_chunk:
            self._write_state()
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Deletes the files, after the result is written elsewhere."""
        with suppress(OSError):  # the result is written; files that remain do no harm
            for path in [self.folder / STATE, *self._feature_files()]:
                path.unlink(missing_ok=True)
            remove_leftovers(self.folder)

    def _write_state(self) -> None:
        counts = {"chunk": torch.tensor([self.chunk, *self.spent], dtype=torch.float64)}
        write_checked(self.folder / STATE, counts | self.accumulator.state(), self._layout)
        self._saved_chunk = self.chunk
        with suppress(OSError):
            for path, chunk in self._feature_files().items():
                if chunk < self.chunk:
                    path.unlink(missing_ok=True)

    def _write_features(self) -> None:
        numbers = sorted(self.fresh)
        blocks = [self.fresh[number] for number in numbers]
        joined = _joined([block.features for block in blocks])
        tensors = {kind: rows for kind, rows in joined._asdict().items() if rows is not None}
        counts = [[n, len(block), block.nfe, block.passes] for n, block in zip(numbers, blocks, strict=True)]
        path = self.folder / f"features-{self.chunk:06d}-{self._name}.safetensors"
        write_checked(path, {"blocks": torch.tensor(counts, dtype=torch.float64), **tensors}, self._layout)
        self._saved_blocks = len(self.fresh)

    def _read(self) -> None:
        """Reads the sums, and the features of the blocks that are not in them."""
        if state := self._tensors_in(self.folder / STATE):
            chunk, *spent = state.pop("chunk").tolist()
            self.chunk, self.spent = int(chunk), Cost(*spent)
            self.accumulator.load(state)
            self._saved_chunk = self.chunk
        for path, chunk in self._feature_files().items():
            tensors = self._tensors_in(path) if chunk >= self.chunk else {}
            start = 0
            for number, length, *cost in tensors["blocks"].tolist() if tensors else ():
                rows = slice(start, start + int(length))
                kinds = [tensors[kind][rows] if kind in tensors else None for kind in Features._fields]
                self.earlier[int(number)] = BlockFeatures(Features(*kinds), *cost)  # pyright: ignore[reportArgumentType]
                start = rows.stop

    def _tensors_in(self, path: Path) -> dict[str, Tensor]:
        """The tensors in a file; none where it is missing, damaged, or has another layout."""
        with suppress(UserError):
            tensors, layout = read_checked(path)
            if layout == self._layout:
                return tensors
        return {}

    def _feature_files(self) -> dict[Path, int]:
        """The files of features from every process and session, and the chunk of each."""
        pattern = re.compile(r"features-(\d{6})-\w+-\w+\.safetensors")
        found = {path: pattern.fullmatch(path.name) for path in sorted(self.folder.iterdir())}
        return {path: int(match[1]) for path, match in found.items() if match}


def _joined(parts: list[Features]) -> Features:
    kinds = []
    for kind in Features._fields:
        tensors = [tensor for part in parts if (tensor := getattr(part, kind)) is not None]
        kinds.append(torch.cat(tensors) if tensors else None)
    return Features(*kinds)
