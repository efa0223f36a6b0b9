"""A teacher's features while they are being written beside finished latents.

teacher/plan.json                  what determines the bytes; work under another plan is refused
teacher/shard-00007.json           the record of finished features, written after them
teacher-projection.safetensors     the directions that features are projected to, if they are
manifest.json                      written again with all records; then `teacher/` is removed
"""

from __future__ import annotations

from pathlib import Path

from mpdit_core.data.manifest import (
    MANIFEST,
    PROJECTION,
    FeatureShard,
    TeacherFeatures,
    TeacherPlan,
    feature_shard_name,
    read_manifest,
    read_record,
)
from mpdit_core.encoding.folder import ShardRecords, require_same
from mpdit_core.encoding.teacher.projection import read_projection
from mpdit_core.runtime.files import remove, write_json


class TeacherFolder(ShardRecords):
    """Features being written, see the module. `path` holds latents; only `plan` and `check` allow unfinished ones."""

    def __init__(self, path: Path):
        super().__init__(path, "teacher")

    @property
    def projection(self) -> Path:
        return self.path / PROJECTION

    @property
    def is_complete(self) -> bool:
        return not self.work.is_dir() and read_manifest(self.path).teacher is not None

    def plan(self) -> TeacherPlan | None:
        """The plan that the features here were begun with; None where there are no features."""
        if (self.path / MANIFEST).is_file() and (teacher := read_manifest(self.path).teacher):
            return teacher.plan
        path = self.work / "plan.json"
        return read_record(TeacherPlan, path) if path.is_file() else None

    def check(self, plan: TeacherPlan) -> None:
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
        require_same(old, same_projection, self.path, remedy=remedy)
        if old.projection:
            read_projection(self.projection, old.projection)

    def clear(self) -> None:
        """Deletes the features, and their part of the manifest."""
        manifest = read_manifest(self.path)
        write_json(self.path / MANIFEST, manifest.model_copy(update={"teacher": None}).model_dump(mode="json"))
        for path in (self.work, *self.path.glob("teacher-*")):
            remove(path)

    def prepare(self, plan: TeacherPlan) -> None:
        """Makes the folder ready for shards, once it is locked and checked."""
        self._begin(plan, self.shards())

    def shards(self) -> dict[int, FeatureShard]:
        """Finished shards by number: those with a record, whose file has its full size."""
        manifest = read_manifest(self.path)
        recorded = dict(enumerate(manifest.teacher.shards if manifest.teacher else ()))
        for number, latents in enumerate(manifest.shards):
            if self._record(number).is_file():
                shard = read_record(FeatureShard, self._record(number))
                if (shard.file, shard.count) == (feature_shard_name(number), latents.count):
                    recorded[number] = shard
        return {number: shard for number, shard in recorded.items() if self._is_there(shard)}

    def finish(self, plan: TeacherPlan) -> None:
        """Writes the manifest with all features, and removes the records.

        Raises:
            UserError: shards were removed after they were written (`no-such-file`).
        """
        manifest, recorded = read_manifest(self.path), self.shards()
        self._require_all(recorded, len(manifest.shards))
        teacher = TeacherFeatures(plan=plan, shards=tuple(recorded[number] for number in range(len(recorded))))
        self._end(manifest.model_copy(update={"teacher": teacher}))
