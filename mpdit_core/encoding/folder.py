"""A folder of latents while it is being written: its plan, the records of finished shards, and the manifest at the end.

encoding/plan.json          what determines the bytes; encoding under another plan is refused
encoding/shard-00007.json   the record of a finished shard, written after it
manifest.json               all records; written last, then `encoding/` is removed
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from mpdit_core import __version__
from mpdit_core.data.manifest import (
    MANIFEST,
    EncodingPlan,
    FeatureShard,
    Manifest,
    Shard,
    measured_statistics,
    normalisation_of,
    read_manifest,
    read_record,
    shard_name,
)
from mpdit_core.errors import UserError
from mpdit_core.runtime.files import remove_leftovers, user_errors, write_json
from mpdit_core.runtime.locks import locked
from mpdit_core.settings import Settings, changes

OURS = (  # patterns of the files that encode-latents writes
    MANIFEST, "encoding", "reference.safetensors", "contact-sheet.png", "reconstruction.json", "shard-*",
    "teacher", "teacher-*", ".*",
)  # fmt: skip


class ShardRecords:
    """The records of finished shards in the folder `work`, which exists while others are still being made."""

    def __init__(self, path: Path, work: str):
        self.path, self.work = path, path / work

    def count_records(self) -> int:
        return sum(1 for _ in self.work.glob("shard-*.json"))

    def add(self, number: int, shard: Shard | FeatureShard) -> None:
        write_json(self._record(number), shard.model_dump(mode="json"))

    def set_aside(self, shard: Shard | FeatureShard) -> None:
        """Renames a bad shard, so that the next run writes it again."""
        path = self.path / shard.file
        if path.exists():
            path.replace(path.with_name(path.name + ".bad"))

    def _begin(self, plan: Settings, finished: Mapping[int, Shard | FeatureShard]) -> None:
        """Makes `work` with the plan, and the records of shards that are `finished`."""
        remove_leftovers(self.path)
        with user_errors(self.work):
            self.work.mkdir(exist_ok=True)
        remove_leftovers(self.work)
        for number, shard in finished.items():
            if not self._record(number).exists():
                self.add(number, shard)
        write_json(self.work / "plan.json", plan.model_dump(mode="json"))

    def _require_all(self, recorded: Mapping[int, Shard | FeatureShard], total: int) -> None:
        if len(recorded) < total:
            raise UserError(
                f"{total - len(recorded)} of {total} shards in {self.path} have been removed since they were written",
                code="no-such-file",
                expected="a folder that no other program changes",
                remedy="run the same command again; it writes what is missing",
            )

    def _end(self, manifest: Manifest) -> None:
        """Writes the manifest, and removes `work` and what `set_aside` renamed."""
        write_json(self.path / MANIFEST, manifest.model_dump(mode="json"))
        shutil.rmtree(self.work, ignore_errors=True)
        for bad in self.path.glob("*.safetensors.bad"):
            bad.unlink(missing_ok=True)

    def _record(self, number: int) -> Path:
        return self.work / f"{Path(shard_name(number)).stem}.json"

    def _is_there(self, shard: Shard | FeatureShard) -> bool:
        path = self.path / shard.file
        return path.is_file() and path.stat().st_size == shard.bytes


class EncodingFolder(ShardRecords):
    """Latents being written, see the module. Rank 0 locks and prepares it; every process adds records of its shards."""

    def __init__(self, path: Path):
        super().__init__(path, "encoding")

    @property
    def has_manifest(self) -> bool:
        return (self.path / MANIFEST).is_file()

    @property
    def is_complete(self) -> bool:
        return self.has_manifest and not self.work.is_dir()

    def check(self, plan: EncodingPlan) -> None:
        """Raises `UserError` where the folder holds anything but latents made under `plan`."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                f"the output folder {self.path} is a file",
                code="cannot-write",
                expected="a folder, or a path that does not exist",
            )
        foreign = self._foreign()
        if foreign:
            raise UserError(
                f"the output folder {self.path} holds files other than latents, such as {foreign[0]}",
                code="foreign-files",
                expected="an empty or new folder, or one that this command started to fill",
                remedy="choose another --out",
            )
        old = self.plan()
        if old is not None:
            moved = plan.source.model_copy(update={"given": old.source.given})
            remedy = f"use the old settings, choose another --out, or delete {self.path}"
            require_same(old, plan.model_copy(update={"source": moved}), self.path, remedy=remedy)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the folder until the body ends. A complete folder may be read-only: then it is not locked."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path))
            except UserError as error:
                if error.code != "cannot-write" or not self.is_complete:
                    raise
            yield

    def prepare(self, plan: EncodingPlan) -> None:
        """Makes the folder ready for shards, once it is locked and checked."""
        # In a repair, the manifest's records of the shards that are there stay valid.
        recorded = enumerate(read_manifest(self.path).shards) if self.has_manifest else ()
        self._begin(plan, {number: shard for number, shard in recorded if self._is_there(shard)})

    def shards(self, plan: EncodingPlan) -> dict[int, Shard]:
        """Finished shards by number: those with a record, whose file has its full size."""
        if self.is_complete:
            recorded = dict(enumerate(read_manifest(self.path).shards))
        else:
            paths = [(number, self._record(number)) for number in range(plan.num_shards)]
            recorded = {n: _read_shard(path, n, plan) for n, path in paths if path.is_file()}
        return {number: shard for number, shard in recorded.items() if self._is_there(shard)}

    def finish(self, plan: EncodingPlan, *, normalisation: Literal["measured", "published"]) -> None:
        """Writes the manifest of all shards, and removes the records.

        Features beside repaired latents are kept, unless the number of images in a shard has changed.

        Raises:
            UserError: every image was skipped (`no-images`); shards were removed after they were written
                (`no-such-file`).
        """
        recorded = self.shards(plan)
        self._require_all(recorded, plan.num_shards)
        shards = tuple(recorded[number] for number in range(plan.num_shards))
        count = sum(shard.count for shard in shards)
        if count == 0:
            raise UserError("every image was skipped", code="no-images", remedy="see the reasons above")
        mean, std = measured_statistics(plan, shards)
        teacher = read_manifest(self.path).teacher if self.has_manifest else None
        counts = [shard.count for shard in shards]
        self._end(
            Manifest(
                plan=plan,
                count=count,
                measured_mean=mean,
                measured_std=std,
                normalisation=normalisation_of(normalisation, mean, std),
                shards=shards,
                made_by=f"mpdit {__version__}",
                teacher=teacher if teacher and [shard.count for shard in teacher.shards] == counts else None,
            )
        )

    def plan(self) -> EncodingPlan | None:
        """The plan that the latents here were begun with; None where there are no latents."""
        if self.has_manifest:
            return read_manifest(self.path).plan
        path = self.work / "plan.json"
        return read_record(EncodingPlan, path) if path.is_file() else None

    def _foreign(self) -> list[str]:
        if not self.path.is_dir() or self.has_manifest or self.work.is_dir():
            return []
        return sorted(p.name for p in self.path.iterdir() if not any(p.match(pattern) for pattern in OURS))


def _read_shard(path: Path, number: int, plan: EncodingPlan) -> Shard:
    shard = read_record(Shard, path)
    if fault := shard.fault(number, plan):
        remedy = f"delete {path}; its shard is written again"
        raise UserError(f"{path} is damaged: {fault}", code="damaged-file", remedy=remedy)
    return shard


def require_same(old: Settings, new: Settings, path: Path, *, remedy: str) -> None:
    """Raises `UserError` (`settings-changed`) where the plan `new` differs from the `old` one of the folder `path`."""
    changed = changes(old, new)
    if not changed:
        return
    hint = " (files of the source were added, removed or changed)" if "source.fingerprint" in changed else ""
    lines = [f"{key}: {before} → {after}" for key, (before, after) in changed.items()]
    shown = [line if len(line) < 160 else line[:157] + "…" for line in lines]
    raise UserError(
        f"{path} was started with settings different from these{hint}:\n    " + "\n    ".join(shown),
        code="settings-changed",
        expected="the same source, autoencoder, teacher and options as before",
        remedy=remedy,
    )
