"""A folder of latents while latents, or a teacher's features beside them, are being written.

encoding/plan.json                what determines the bytes of latents; encoding under another plan is refused
encoding/shard-00007.json         the record of a finished shard, written after it
teacher/                          the same for a teacher's features
teacher-projection.safetensors    the directions that features are projected to, if they are
manifest.json                     all records; written last, then `encoding/` or `teacher/` is removed
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor

from mpdit_core.data.manifest import (
    MANIFEST,
    PROJECTION,
    EncodingPlan,
    FeatureShard,
    Manifest,
    Shard,
    TeacherFeatures,
    TeacherPlan,
    feature_shard_name,
    measured_statistics,
    normalisation_of,
    read_manifest,
    read_record,
    shard_name,
)
from mpdit_core.errors import UserError
from mpdit_core.runtime.checked_tensors import read_checked, write_checked
from mpdit_core.runtime.files import remove, remove_leftovers, sha256, user_errors, write_json
from mpdit_core.runtime.locks import locked
from mpdit_core.settings import Settings, changes
from mpdit_core.version import __version__

OURS = (  # patterns of the files that encode-latents writes
    MANIFEST, "encoding", "reference.safetensors", "contact-sheet.png", "reconstruction.json", "shard-*",
    "teacher", "teacher-*", ".*",
)  # fmt: skip
DIRECTIONS = "directions"  # name of the tensor of a projection

S = TypeVar("S", Shard, FeatureShard)


class ShardRecords:
    """The records of finished shards in the folder `work`, which exists while others are still being made."""

    def __init__(self, path: Path, work: str):
        self.path, self.work = path, path / work
        self._plan_path = self.work / "plan.json"

    @property
    def has_manifest(self) -> bool:
        return (self.path / MANIFEST).is_file()

    @property
    def in_work(self) -> bool:
        """Whether shards are being made. `begin` writes the plan last, and `_write_manifest` removes it first."""
        return self._plan_path.is_file()

    def count_records(self) -> int:
        return sum(1 for _ in self.work.glob("shard-*.json"))

    def add(self, number: int, shard: Shard | FeatureShard) -> None:
        write_json(self._record_path(number), shard.model_dump(mode="json"))

    def set_aside(self, shard: Shard | FeatureShard) -> None:
        """Renames a bad shard, so that the next run writes it again."""
        path = self.path / shard.file
        if path.exists():
            path.replace(path.with_name(path.name + ".bad"))

    def begin(self, plan: Settings, finished: Mapping[int, Shard | FeatureShard]) -> None:
        """Makes `work`, in a folder that is locked and checked, with the plan and the records of `finished` shards."""
        remove_leftovers(self.path)
        with user_errors(self.work):
            self.work.mkdir(exist_ok=True)
        remove_leftovers(self.work)
        for number, shard in finished.items():
            if not self._record_path(number).exists():
                self.add(number, shard)
        write_json(self._plan_path, plan.model_dump(mode="json"))

    def _require_all(self, recorded: Mapping[int, Shard | FeatureShard], total: int) -> None:
        if len(recorded) < total:
            raise UserError(
                f"{total - len(recorded)} of {total} shards in {self.path} have been removed since they were written",
                code="no-such-file",
                expected="a folder that no other program changes",
                remedy="run the same command again; it writes what is missing",
            )

    def _write_manifest(self, manifest: Manifest) -> None:
        """Writes the manifest, and removes `work` and what `set_aside` renamed."""
        write_json(self.path / MANIFEST, manifest.model_dump(mode="json"))
        remove(self._plan_path)
        shutil.rmtree(self.work, ignore_errors=True)
        for bad in self.path.glob("*.safetensors.bad"):
            bad.unlink(missing_ok=True)

    def _record_path(self, number: int) -> Path:
        return self.work / f"{Path(shard_name(number)).stem}.json"

    def _records(self, kind: type[S], total: int) -> dict[int, S]:
        paths = {number: self._record_path(number) for number in range(total)}
        return {number: read_record(kind, path) for number, path in paths.items() if path.is_file()}

    def _whole(self, recorded: Iterable[tuple[int, S]]) -> dict[int, S]:
        """The shards whose file has its full size."""

        def is_whole(shard: S) -> bool:
            path = self.path / shard.file
            return path.is_file() and path.stat().st_size == shard.bytes

        return {number: shard for number, shard in recorded if is_whole(shard)}


class EncodingFolder(ShardRecords):
    """Latents being written. Rank 0 locks and prepares it; every process adds records of its shards."""

    def __init__(self, path: Path):
        super().__init__(path, "encoding")

    @property
    def is_complete(self) -> bool:
        return self.has_manifest and not self.in_work

    def require_plan(self, plan: EncodingPlan) -> None:
        """Raises `UserError` where the folder holds anything but latents made under `plan`."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                f"the output folder {self.path} is a file",
                code="cannot-write",
                expected="a folder, or a path that does not exist",
            )
        begun = self.has_manifest or self.work.is_dir() or not self.path.exists()
        names = [] if begun else sorted(path.name for path in self.path.iterdir())
        foreign = [name for name in names if not any(Path(name).match(pattern) for pattern in OURS)]
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
            _require_same(old, plan.model_copy(update={"source": moved}), self.path, remedy=remedy)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder until the body ends. A complete folder may be read-only: then it is not locked."""
        with ExitStack() as lock:
            try:
                lock.enter_context(locked(self.path))
            except UserError as error:
                if error.code != "cannot-write" or not self.is_complete:
                    raise
            yield

    def shards(self, plan: EncodingPlan) -> dict[int, Shard]:
        """Finished shards by number: those with a record, whose file has its full size."""
        if self.is_complete:
            return self._whole(enumerate(read_manifest(self.path).shards))
        recorded = self._records(Shard, plan.num_shards)
        for number, shard in recorded.items():
            if fault := shard.fault(number, plan):
                path = self._record_path(number)
                remedy = f"delete {path}; its shard is written again"
                raise UserError(f"{path} is damaged: {fault}", code="damaged-file", remedy=remedy)
        return self._whole(recorded.items())

    def finish(self, plan: EncodingPlan, *, normalisation: Literal["measured", "published"] | None) -> None:
        """Writes the manifest of all shards, and removes the records.

        Features beside repaired latents are kept, unless the number of images in a shard has changed.

        Args:
            normalisation: None: that of repaired latents, else `measured`.

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
        old = read_manifest(self.path) if self.has_manifest else None
        was_published = old is not None and old.normalisation.name == "published"
        name = normalisation or ("published" if was_published else "measured")
        teacher = old.teacher if old else None
        if teacher and [shard.count for shard in teacher.shards] != [shard.count for shard in shards]:
            teacher = None
        self._write_manifest(
            Manifest(
                plan=plan,
                count=count,
                measured_mean=mean,
                measured_std=std,
                normalisation=normalisation_of(name, mean, std),
                shards=shards,
                made_by=f"mpdit {__version__}",
                teacher=teacher,
            )
        )

    def plan(self) -> EncodingPlan | None:
        """The plan that the latents here were begun with; None where there are no latents."""
        if self.has_manifest:
            return read_manifest(self.path).plan
        return read_record(EncodingPlan, self._plan_path) if self.in_work else None


class TeacherFolder(ShardRecords):
    """Features being written. `path` holds latents; only `plan` and `require_plan` allow unfinished ones."""

    def __init__(self, path: Path):
        super().__init__(path, "teacher")

    @property
    def is_complete(self) -> bool:
        return not self.in_work and read_manifest(self.path).teacher is not None

    def plan(self) -> TeacherPlan | None:
        """The plan that the features here were begun with; None where there are no features."""
        if self.has_manifest and (teacher := read_manifest(self.path).teacher):
            return teacher.plan
        return read_record(TeacherPlan, self._plan_path) if self.in_work else None

    def require_plan(self, plan: TeacherPlan) -> None:
        """Refuses features of another plan. The projection is not compared: it is measured once per folder.

        Raises:
            UserError: the folder holds other features than those of `plan` (`settings-changed`), or lacks its
                projection (`damaged-file`).
        """
        old = self.plan()
        if old is None:
            return
        remedy = "use the old settings, or add --replace-teacher to delete the stored features and make these"
        same_projection = plan.model_copy(update={"projection": old.projection})
        _require_same(old, same_projection, self.path, remedy=remedy)
        self.read_projection(old)

    def write_projection(self, directions: Tensor) -> str:
        """Writes `directions` [F, dims] float32; returns the SHA-256 of their file, for the plan."""
        write_checked(self.path / PROJECTION, {DIRECTIONS: directions}, {})
        return sha256(self.path / PROJECTION)

    def read_projection(self, plan: TeacherPlan) -> Tensor | None:
        """The directions [F, dims] that features are projected to; None if they are not.

        Raises:
            UserError: the file is not the one of `plan` (`damaged-file`).
        """
        if plan.projection is None:
            return None
        path = self.path / PROJECTION
        if not path.is_file() or sha256(path) != plan.projection:
            raise UserError(
                f"{path} is missing or has changed since it was written",
                code="damaged-file",
                expected=f"a file with the SHA-256 {plan.projection[:16]}…",
                remedy="restore it, or add --replace-teacher to make all features again",
            )
        return read_checked(path)[0][DIRECTIONS]

    def clear(self) -> None:
        """Deletes the features, and their part of the manifest."""
        manifest = read_manifest(self.path)
        write_json(self.path / MANIFEST, manifest.model_copy(update={"teacher": None}).model_dump(mode="json"))
        for path in (self.work, *self.path.glob("teacher-*")):
            remove(path)

    def shards(self) -> dict[int, FeatureShard]:
        """Finished shards by number: those with a record, whose file has its full size."""
        manifest = read_manifest(self.path)
        if manifest.teacher and not self.in_work:
            return self._whole(enumerate(manifest.teacher.shards))
        recorded = self._records(FeatureShard, len(manifest.shards))
        expected = [(feature_shard_name(number), shard.count) for number, shard in enumerate(manifest.shards)]
        return self._whole((n, shard) for n, shard in recorded.items() if (shard.file, shard.count) == expected[n])

    def finish(self, plan: TeacherPlan) -> None:
        """Writes the manifest with all features, and removes the records.

        Raises:
            UserError: shards were removed after they were written (`no-such-file`).
        """
        manifest, recorded = read_manifest(self.path), self.shards()
        self._require_all(recorded, len(manifest.shards))
        teacher = TeacherFeatures(plan=plan, shards=tuple(recorded[number] for number in range(len(recorded))))
        self._write_manifest(manifest.model_copy(update={"teacher": teacher}))


def _require_same(old: Settings, new: Settings, path: Path, *, remedy: str) -> None:
    """Raises `UserError` (`settings-changed`) where the plan `new` differs from the `old` one of the folder `path`."""
    changed = changes(old, new)
    if not changed:
        return
    hint = " (files of the source were added, removed or changed)" if "source.fingerprint" in changed else ""
    lines = [f"{key}: {before} → {after}" for key, (before, after) in changed.items()]
    shown = [line if len(line) < 160 else line[:157] + "…" for line in lines]
    raise UserError(
        f"{path} was started with settings different from these{hint}: {'; '.join(shown)}",
        code="settings-changed",
        expected="the same source, autoencoder, teacher and options as before",
        remedy=remedy,
    )
