"""The second pass of `encode-latents --teacher`: a teacher's features, stored once beside finished latents.

They are made as the latents are: in shards of fixed images, shared among processes, kept when the command is killed.
"""

from __future__ import annotations

from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import TeacherPlan
from mpdit_core.data.shards import ShardContent, write_feature_shard
from mpdit_core.encoding.setup import EncodeJob
from mpdit_core.encoding.teacher.folder import TeacherFolder
from mpdit_core.encoding.teacher.projection import measure_projection, one_thread, read_projection, write_projection
from mpdit_core.encoding.teacher.teachers import LoadedTeacher
from mpdit_core.encoding.work import ShardWork, make_shards
from mpdit_core.errors import UserError
from mpdit_core.reporting import Note

MEASURED_ON = 256  # images, for a projection


def store_features(job: EncodeJob, teacher: LoadedTeacher) -> None:
    """Makes the features that are missing; every process makes its share. Rank 0 has locked the folder.

    Raises:
        UserError: other features are stored (`settings-changed`), or as the teacher raises.
        Interrupted: a signal came; finished shards are kept.
    """
    folder, latents = TeacherFolder(job.folder.path), LatentFolder(job.folder.path)
    plan, unfinished = job.world.on_main(lambda: _begin(job, teacher, folder, latents))
    if unfinished is None:
        job.report(Note(text=f"the features of {plan.name} are complete: nothing to compute"))
        return
    count, grid = job.plan.count_items(unfinished), f"{plan.grid.height} × {plan.grid.width}"
    text = f"storing the features of {count:,} images: {grid} tokens of {plan.features} by {plan.name}"
    job.report(Note(text=text))
    projection = read_projection(folder.projection, plan.projection) if plan.projection else None

    def store(content: ShardContent) -> None:
        folder.add(content.number, write_feature_shard(folder.path, plan, content))

    work = ShardWork(
        task="teacher",
        plan=job.plan,
        unfinished=unfinished,
        encode=lambda shards: teacher.shards(latents, shards, projection),
        store=store,
        records=folder,
    )
    make_shards(work, world=job.world, report=job.report)
    job.world.on_main(lambda: folder.finish(plan))


def _begin(
    job: EncodeJob, teacher: LoadedTeacher, folder: TeacherFolder, latents: LatentFolder
) -> tuple[TeacherPlan, list[int] | None]:
    """The plan, with its projection measured, and the shards to make; None where all are complete."""
    plan = teacher.plan
    try:
        folder.check(plan)
    except UserError:
        if not job.options.replace_teacher:
            raise
        folder.clear()
    begun = folder.plan()
    if job.options.teacher_dims:
        projection = begun.projection if begun else _measure(job, teacher, folder, latents)
        plan = plan.model_copy(update={"projection": projection})
    done = folder.shards()
    unfinished = [number for number in range(job.plan.num_shards) if number not in done]
    if not unfinished and folder.is_complete:
        return plan, None
    folder.prepare(plan)
    return plan, unfinished


def _measure(job: EncodeJob, teacher: LoadedTeacher, folder: TeacherFolder, latents: LatentFolder) -> str:
    """Measures and writes the projection; returns the SHA-256 of its file."""
    job.report(Note(text=f"measuring the projection of {teacher.plan.name} on up to {MEASURED_ON} images"))
    with one_thread():  # the same bits for any number of cores
        _, features = teacher.sample(latents, MEASURED_ON, seed=0)
        projection = measure_projection(features, teacher.plan.features)
    of, dims = projection.directions.shape
    job.report(Note(text=f"{dims} of {of} dimensions hold {projection.share:.1%} of the squared features"))
    return write_projection(folder.projection, projection)
