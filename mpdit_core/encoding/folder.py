"""A folder of latents while it is being written: its plan, the finished shards, and the step to a finished folder.

encoding/plan.json          what fixes the bytes; a run under another plan is refused
encoding/shard-00007.json   the record of a finished shard, written after it
manifest.json               all records; written last, then `encoding/` is removed
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any

from mpdit_core import __version__
from mpdit_core.config import differences
from mpdit_core.data.manifest import (
    FORMAT,
    MANIFEST,
    EncodingPlan,
    Manifest,
    Normalisation,
    Shard,
    read_manifest,
    shard_name,
)
from mpdit_core.errors import UserError
from mpdit_core.runtime.files import read_json, remove_leftovers, user_errors, write_json
from mpdit_core.settings import validate

OURS = (MANIFEST, "encoding", "reference.safetensors", "contact-sheet.png", "shard-*", ".*")
SECONDS_FOR_LOCK = 10.0  # the processes of a killed launcher need a moment to notice


class EncodingFolder:
    """See the module. Rank 0 calls `begin` and `finish`; every process writes the records of its own shards."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.work = self.path / "encoding"
        self._lock: IO[str] | None = None

    @property
    def is_finished(self) -> bool:
        return (self.path / MANIFEST).is_file()

    def check(self, plan: EncodingPlan) -> None:
        """Raises `UserError` when the folder holds something else than latents made under `plan`."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file", expected="a folder, or a place for a new one")
        foreign = self._foreign()
        if foreign:
            raise UserError(
                f"--out {self.path} holds other things, such as {foreign[0]}",
                expected="an empty or new folder, or one that this command began",
                remedy="choose another --out",
            )
        old = self.old_plan()
        if old is not None:
            _compare(old, plan, self.path)

    def old_plan(self) -> EncodingPlan | None:
        if self.is_finished:
            return read_manifest(self.path).plan
        if (self.work / "plan.json").is_file():
            return validate(EncodingPlan, read_json(self.work / "plan.json"), origin=str(self.work / "plan.json"))
        return None

    def begin(self, plan: EncodingPlan) -> None:
        """Makes the folder ready for shards, after `check`. Holds it against a second run until `close`."""
        with user_errors(self.path):
            self.work.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.work / "lock", "a")  # noqa: SIM115 - held until close
        _acquire(self._lock, self.path)
        remove_leftovers(self.path)
        remove_leftovers(self.work)
        if self.is_finished:  # mending: the manifest's records of the shards that are there still hold
            for number, shard in enumerate(read_manifest(self.path).shards):
                if not self._record(number).exists() and self._is_there(shard):
                    self.add(number, shard)
        write_json(self.work / "plan.json", plan.model_dump(mode="json"))

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def shards(self, plan: EncodingPlan) -> dict[int, Shard]:
        """Finished shards by number: recorded, and present in their full size."""
        if self.is_finished and not self.work.is_dir():
            recorded: dict[int, Any] = dict(enumerate(read_manifest(self.path).shards))
        else:
            paths = [(number, self._record(number)) for number in range(plan.num_shards)]
            recorded = {n: validate(Shard, read_json(path)) for n, path in paths if path.is_file()}
        return {number: shard for number, shard in recorded.items() if self._is_there(shard)}

    def count_records(self) -> int:
        return sum(1 for _ in self.work.glob("shard-*.json"))

    def add(self, number: int, shard: Shard) -> None:
        write_json(self._record(number), shard.model_dump(mode="json"))

    def discard(self, shard: Shard) -> None:
        """Moves a bad shard aside, so that the next run makes it anew."""
        path = self.path / shard.file
        if path.exists():
            path.replace(path.with_name(path.name + ".bad"))

    def finish(self, manifest: Manifest) -> None:
        write_json(self.path / MANIFEST, manifest.model_dump(mode="json"))
        self.close()
        shutil.rmtree(self.work, ignore_errors=True)
        for bad in self.path.glob("shard-*.bad"):
            bad.unlink(missing_ok=True)

    def _record(self, number: int) -> Path:
        return self.work / f"{Path(shard_name(number)).stem}.json"

    def _is_there(self, shard: Shard) -> bool:
        path = self.path / shard.file
        return path.is_file() and path.stat().st_size == shard.bytes

    def _foreign(self) -> list[str]:
        if not self.path.is_dir() or self.is_finished or self.work.is_dir():
            return []
        return sorted(p.name for p in self.path.iterdir() if not any(p.match(pattern) for pattern in OURS))


def make_manifest(
    plan: EncodingPlan,
    shards: dict[int, Shard],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    norm: Normalisation,
) -> Manifest:
    ordered = tuple(shards[number] for number in range(plan.num_shards))
    return Manifest(
        plan=plan,
        count=sum(shard.count for shard in ordered),
        measured_mean=mean,
        measured_std=std,
        normalisation=norm,
        shards=ordered,
        made_by=f"mpdit {__version__}",
    )


def _acquire(lock: IO[str], path: Path) -> None:
    deadline = time.monotonic() + SECONDS_FOR_LOCK
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                lock.close()
                raise UserError(
                    f"another run is writing to {path}",
                    expected="one at a time (several processes of one run share the work: --nproc)",
                    remedy="wait for it, or stop it",
                ) from error
            time.sleep(0.2)


def _compare(old: EncodingPlan, new: EncodingPlan, path: Path) -> None:
    if old.format != FORMAT:
        raise UserError(f"{path} was written in format {old.format}", expected=f"format {FORMAT}")
    moved = new.source.model_copy(update={"given": old.source.given})
    changed = differences(old, new.model_copy(update={"source": moved}))
    if not changed:
        return
    hints = []
    if any(line.startswith("source.fingerprint") for line in changed):
        hints.append("files of the source were added, removed or changed")
    lines = [line if len(line) < 160 else line[:157] + "…" for line in changed]
    raise UserError(
        f"{path} was begun with other settings than these"
        + (f" ({'; '.join(hints)})" if hints else "")
        + ":\n    "
        # old → new
        + "\n    ".join(lines),
        expected="the same source, autoencoder and options as before",
        remedy=f"repeat the old ones, choose another --out, or delete {path}",
    )
