"""A teacher's features while they are being written beside finished latents.

teacher/plan.json                  what fixes the bytes; a run under another plan is refused
teacher/shard-00007.json           the record of finished features, written after them
teacher-projection.safetensors     the directions that features are projected to, if they are
manifest.json                      written again with all records; then `teacher/` is removed
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mpdit_core.data.manifest import (
    FORMAT,
    MANIFEST,
    PROJECTION,
    FeatureShard,
    TeacherFeatures,
    TeacherPlan,
    feature_shard_name,
    read_manifest,
    read_record,
    read_versioned,
)
from mpdit_core.encoding.folder import ShardRecords, require_same
from mpdit_core.encoding.teacher.projection import read_projection
from mpdit_core.errors import UserError
from mpdit_core.runtime.files import remove, write_json


class TeacherFolder(ShardRecords):
    """See the module. `path` is a folder of latents; all but `plan` and `check` need a finished one."""

    def __init__(self, path: Path):
        super().__init__(path, "teacher")

    @property
    def projection(self) -> Path:
        return self.path / PROJECTION

    @property
    def is_complete(self) -> bool:
        return not self.work.is_dir() and read_manifest(self.path).teacher is not None

    def plan(self) -> TeacherPlan | None:
        """The plan that the features here were begun with; None where there are none."""
        if (self.path / MANIFEST).is_file() and (teacher := read_manifest(self.path).teacher):
            return teacher.plan
        path = self.work / "plan.json"
        return read_versioned(TeacherPlan, path) if path.is_file() else None

    def check(self, plan: TeacherPlan) -> None:
        """The projection does not count: it is measured once, and then belongs to the folder.

        Raises:
            UserError: the folder holds other features than those of `plan` (`settings-changed`), or the projection of
                its own is not there (`damaged-file`).
        """
        old = self.plan()
        if old is None:
            return
        remedy = "use the old settings, or add --replace-teacher to delete the stored features and make these"
        same_projection = plan.model_copy(update={"projection": old.projection})
        require_same(old, same_projection, self.path, remedy=remedy)
        if old.projection:
            read_projection(self.projection, old.projection)

    def clear(self) -> None:
        """Deletes the features, and what the manifest says of them."""
        manifest = read_manifest(self.path)
        write_json(self.path / MANIFEST, manifest.model_copy(update={"teacher": None}).model_dump(mode="json"))
        for path in (self.work, *self.path.glob("teacher-*")):
            remove(path)

    def prepare(self, plan: TeacherPlan) -> None:
        """Makes the folder ready for shards; it is held and was checked."""
        self._make_work_folder()
        for number, shard in self.shards().items():  # of a repair
            if not self._record(number).exists():
                self.add(number, shard)
        write_json(self.work / "plan.json", plan.model_dump(mode="json"))

    def shards(self) -> dict[int, FeatureShard]:
        """Finished shards by number: recorded, and present in their full size."""
        manifest = read_manifest(self.path)
        recorded = dict(enumerate(manifest.teacher.shards if manifest.teacher else ()))
        for number, latents in enumerate(manifest.shards):
            if self._record(number).is_file():
                shard = read_record(FeatureShard, self._record(number))
                if (shard.file, shard.count) == (feature_shard_name(number), latents.count):
                    recorded[number] = shard
        return {number: shard for number, shard in recorded.items() if self._is_there(shard)}

    def finish(self, plan: TeacherPlan) -> None:
        """Writes the manifest with features that are all there, and removes what served the writing.

        Raises:
            UserError: shards have gone since they were written (`no-such-file`).
        """
        manifest, recorded = read_manifest(self.path), self.shards()
        if len(recorded) < len(manifest.shards):
            raise UserError(
                f"{len(manifest.shards) - len(recorded)} of {len(manifest.shards)} files of features in {self.path} "
                "have been removed since they were written",
                code="no-such-file",
                expected="a folder that no other program changes",
                remedy="run the same command again; it writes what is missing",
            )
        teacher = TeacherFeatures(plan=plan, shards=tuple(recorded[number] for number in range(len(recorded))))
        whole = manifest.model_copy(update={"format": FORMAT, "teacher": teacher})
        write_json(self.path / MANIFEST, whole.model_dump(mode="json"))
        shutil.rmtree(self.work, ignore_errors=True)
        for bad in self.path.glob("teacher-*.bad"):
            bad.unlink(missing_ok=True)
