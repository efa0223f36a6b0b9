"""The second pass of `encode-latents --teacher`: a teacher's features, stored once beside finished latents.

They are made as the latents are: in shards of fixed images, shared among processes, kept when the command is killed.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import TeacherPlan
from mpdit_core.data.shards import write_feature_shard
from mpdit_core.encoding.folder import TeacherFolder
from mpdit_core.encoding.setup import EncodeJob
from mpdit_core.encoding.teacher.teachers import LoadedTeacher
from mpdit_core.encoding.work import make_shards
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
    make_shards(
        job,
        unfinished,
        task="teacher",
        encode=partial(teacher.shards, latents, projection=folder.read_projection(plan)),
        write=partial(write_feature_shard, folder.path, plan),
        records=folder,
    )
    job.world.on_main(lambda: folder.finish(plan))


def _begin(
    job: EncodeJob, teacher: LoadedTeacher, folder: TeacherFolder, latents: LatentFolder
) -> tuple[TeacherPlan, list[int] | None]:
    """The plan, with its projection measured, and the shards to make; None where all are complete."""
    plan = teacher.plan
    try:
        folder.require_plan(plan)
    except UserError:
        if not job.options.replace_teacher:
            raise
        folder.clear()
    if job.options.teacher_dims:
        begun = folder.plan()
        projection = begun.projection if begun else _project(job, teacher, folder, latents)
        plan = plan.model_copy(update={"projection": projection})
    done = folder.shards()
    unfinished = [number for number in range(job.plan.num_shards) if number not in done]
    if not unfinished and folder.is_complete:
        return plan, None
    folder.begin(plan, done)
    return plan, unfinished


def _project(job: EncodeJob, teacher: LoadedTeacher, folder: TeacherFolder, latents: LatentFolder) -> str:
    """Measures and writes the projection; returns the SHA-256 of its file."""
    job.report(Note(text=f"measuring the projection of {teacher.plan.name} on up to {MEASURED_ON} images"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits for any number of cores
    try:
        _, features = teacher.sample(latents, MEASURED_ON, seed=0)
        directions, share = measure_projection(features, teacher.plan.features)
    finally:
        torch.set_num_threads(threads)
    of, dims = directions.shape
    job.report(Note(text=f"{dims} of {of} dimensions hold {share:.1%} of the squared features"))
    return folder.write_projection(directions)


def measure_projection(features: Tensor, dims: int) -> tuple[Tensor, float]:
    """The `dims` principal directions of `features` [n, N, F] about zero, and their share of the squared features.

    The directions [F, dims] float32 are orthonormal, the one with the largest share first. Directions about zero, not
    about the mean, keep dot products best, and so the cosines that alignment compares.
    """
    rows = features.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows)  # ascending
    vectors = vectors.flip(1)[:, :dims]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))  # made positive: the sign is arbitrary
    share = (values.flip(0)[:dims].sum() / values.sum()).item()
    return (vectors * largest.sign()).float(), share
