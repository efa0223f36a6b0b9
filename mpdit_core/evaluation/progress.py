"""The progress of a pass over images, kept on disk so that a kill loses at most a minute.

    state.safetensors                  the sums over the complete chunks (FeatureAccumulator.state)
    features-CHUNK-NAME.safetensors    features of finished blocks of an incomplete chunk; one per process and session

The sums are written under a temporary name and renamed, and only then are files of features removed. So whenever the
process is killed, an image is in the sums, in a file of features of a later chunk, or not done. A file that is damaged
or has another layout is ignored (checked_tensors.py checks every bit).
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mpdit_core.api import Features
from mpdit_core.errors import UserError
from mpdit_core.metrics.accumulator import FeatureAccumulator
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
def held(folder: Path, world: World, *, wait: float = 0, report: Reporter) -> Iterator[None]:
    """Locks `folder` against other commands (in the main process), and removes it at the end if it is empty.

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


@dataclass(frozen=True)
class Layout:
    """How `count` images are divided into blocks of `size` images, and chunks of blocks. The last may be smaller."""

    count: int
    size: int

    @property
    def num_blocks(self) -> int:
        return -(-self.count // self.size)

    @property
    def blocks_per_chunk(self) -> int:
        return max(1, CHUNK_IMAGES // self.size)

    @property
    def num_chunks(self) -> int:
        return -(-self.num_blocks // self.blocks_per_chunk)

    def chunk_blocks(self, chunk: int) -> range:
        start = chunk * self.blocks_per_chunk
        return range(start, min(start + self.blocks_per_chunk, self.num_blocks))

    def about(self) -> dict[str, str]:
        """The description of the layout in a file."""
        return {"layout": f"{FORMAT} {self.count} {self.size} {self.blocks_per_chunk}"}


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
        name: of this process, for its files.
    """

    def __init__(self, folder: Path, accumulator: FeatureAccumulator, layout: Layout, *, name: str):
        self.folder, self.accumulator, self.layout = folder, accumulator, layout
        self.chunk, self.spent = 0, Cost(0, 0)  # number of chunks in the sums, and the total cost of their images
        self.earlier: dict[int, BlockFeatures] = {}  # blocks of the current chunk that earlier sessions finished
        self.fresh: dict[int, BlockFeatures] = {}  # those that this process finished in this session
        self._name = f"{name}-{uuid.uuid4().hex[:8]}"
        self._saved_chunk, self._saved_blocks, self._saved_at = 0, 0, time.monotonic()
        with user_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._found = self._feature_files()  # of earlier sessions: this one has written none yet
        self._read_state()
        self._read_features()

    @property
    def complete(self) -> bool:
        return self.chunk == self.layout.num_chunks

    @property
    def cost(self) -> Cost:
        """The cost of the images in the sums, as means."""
        return Cost(*(total / self.layout.count for total in self.spent))

    @property
    def images_done(self) -> int:
        """Images in the sums and in the blocks known to this process."""
        return self.accumulator.done + sum(len(block) for block in [*self.earlier.values(), *self.fresh.values()])

    def blocks_to_do(self) -> list[int]:
        """The blocks of the current chunk that no earlier session finished; the same in every process."""
        return [block for block in self.layout.chunk_blocks(self.chunk) if block not in self.earlier]

    def add(self, block: int, features: BlockFeatures) -> None:
        self.fresh[block] = features

    def close_chunk(self, parts: Iterable[Mapping[int, BlockFeatures]]) -> None:
        """Adds the current chunk to the sums. `parts`: the fresh blocks of every process."""
        blocks = dict(self.earlier)
        for part in parts:
            blocks |= part
        ordered = [blocks[number] for number in self.layout.chunk_blocks(self.chunk)]
        self.accumulator.add(_joined([block.features for block in ordered]))
        self.spent = Cost(
            nfe=self.spent.nfe + sum(block.nfe * len(block) for block in ordered),
            passes=self.spent.passes + sum(block.passes * len(block) for block in ordered),
        )
        self.chunk += 1
        self.fresh, self._saved_blocks = {}, 0
        self._read_features()

    def save_if_due(self, *, is_main: bool) -> None:
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN_SAVES:
            self.save(is_main=is_main)

    def save(self, *, is_main: bool) -> None:
        """Writes what is not on disk yet: every process its blocks, the main process the sums."""
        if len(self.fresh) > self._saved_blocks:
            self._write_features()
        if is_main and self.chunk > self._saved_chunk:
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
        write_checked(self.folder / STATE, counts | self.accumulator.state(), self.layout.about())
        self._saved_chunk = self.chunk
        with suppress(OSError):
            for path, chunk in self._feature_files().items():
                if chunk < self.chunk:
                    path.unlink(missing_ok=True)

    def _read_state(self) -> None:
        state = self._read(self.folder / STATE)
        if state:
            chunk, *spent = state.pop("chunk").tolist()
            self.chunk, self.spent = int(chunk), Cost(*spent)
            self.accumulator.load(state)
            self._saved_chunk = self.chunk

    def _read(self, path: Path) -> dict[str, Tensor]:
        """The tensors in a file; none where it is missing, damaged, or has another layout."""
        with suppress(UserError):
            tensors, about = read_checked(path)
            if about == self.layout.about():
                return tensors
        return {}

    def _feature_files(self) -> dict[Path, int]:
        """The files of features from every process and session, and the chunk of each."""
        pattern = re.compile(r"features-(\d{6})-\w+-\w+\.safetensors")
        return {
            path: int(found[1]) for path in sorted(self.folder.iterdir()) if (found := pattern.fullmatch(path.name))
        }

    def _write_features(self) -> None:
        numbers = sorted(self.fresh)
        blocks = [self.fresh[number] for number in numbers]
        joined = _joined([block.features for block in blocks])
        tensors = {kind: rows for kind, rows in joined._asdict().items() if rows is not None}
        counts = [[n, len(block), block.nfe, block.passes] for n, block in zip(numbers, blocks, strict=True)]
        path = self.folder / f"features-{self.chunk:06d}-{self._name}.safetensors"
        write_checked(path, {"blocks": torch.tensor(counts, dtype=torch.float64), **tensors}, self.layout.about())
        self._saved_blocks = len(self.fresh)

    def _read_features(self) -> None:
        """Reads the blocks of the current chunk that earlier sessions saved."""
        self.earlier = {}
        for path, chunk in self._found.items():
            tensors = self._read(path) if chunk == self.chunk else {}
            if not tensors:
                continue
            start = 0
            for number, length, *cost in tensors["blocks"].tolist():
                rows = slice(start, start + int(length))
                kinds = [tensors[kind][rows] if kind in tensors else None for kind in Features._fields]
                self.earlier[int(number)] = BlockFeatures(Features(*kinds), *cost)  # pyright: ignore[reportArgumentType]
                start = rows.stop


def _joined(parts: list[Features]) -> Features:
    kinds = []
    for kind in Features._fields:
        tensors = [tensor for part in parts if (tensor := getattr(part, kind)) is not None]
        kinds.append(torch.cat(tensors) if tensors else None)
    return Features(*kinds)
