"""Before the first image: everything is opened, the plan is made, and what cannot be done is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from mpdit_core.data.autoencoders import DEFAULT_AUTOENCODER, LoadedAutoencoder, is_plugin, load_autoencoder
from mpdit_core.data.manifest import EncodingPlan, read_manifest, require_published
from mpdit_core.data.sources import open_source, source_notes
from mpdit_core.encoding.folder import EncodingFolder, TeacherFolder
from mpdit_core.encoding.foreign_latents import detect_format, find_foreign_latents, import_shards
from mpdit_core.encoding.options import EncodeOptions
from mpdit_core.encoding.pipeline import Encoded, encode_shards, latents_encoder
from mpdit_core.encoding.plan import (
    DEFAULT_RESOLUTION,
    make_plan,
    output_folder,
    plan_import,
    source_arguments,
    what_is_encoded,
)
from mpdit_core.encoding.teacher.teachers import LoadedTeacher, open_teacher
from mpdit_core.protocols import Dataset
from mpdit_core.reporting import Note, Reporter, Warning
from mpdit_core.runtime.concurrency import usable_cores
from mpdit_core.runtime.distributed import World
from mpdit_core.size import Size

MakeShards = Callable[[Sequence[int]], Iterator[Encoded]]


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """What one call of `encode_latents` works with, once everything is open.

    Args:
        source: the images; None where latents of another program are imported.
        shards_of: gives the content of shards, one after the other, for their numbers.
        teacher: the teacher whose features are stored beside the latents, if one was asked for.
    """

    options: EncodeOptions
    plan: EncodingPlan
    folder: EncodingFolder
    source: Dataset | None
    shards_of: MakeShards
    autoencoder: LoadedAutoencoder
    teacher: LoadedTeacher | None
    world: World
    report: Reporter

    @property
    def is_check(self) -> bool:
        """Whether finished latents are only checked: missing shards are reported, not made."""
        return self.options.verify and self.folder.has_manifest

    def teacher_to_store(self) -> LoadedTeacher | None:
        """The teacher, unless its features are there and only checked."""
        return None if self.is_check and read_manifest(self.folder.path).teacher else self.teacher

    def unfinished_shards(self) -> list[int] | None:
        """Numbers of the shards to encode; None for a complete folder, and for one that is only checked."""
        if self.is_check:
            return None
        done = self.folder.shards(self.plan)
        todo = [number for number in range(self.plan.num_shards) if number not in done]
        return None if not todo and self.folder.is_complete else todo


def open_job(options: EncodeOptions, *, device: torch.device, world: World, report: Reporter) -> EncodeJob:
    """Opens everything, makes the plan, and refuses what cannot be done; in every process."""
    given = what_is_encoded(options)
    opened = _open_import if options.from_latents else _open_images
    plan, source, autoencoder, shards_of = opened(given, options, device=device, world=world, report=report)
    folder = EncodingFolder(output_folder(options, plan.resolution))
    spec = autoencoder.spec
    if ":" in spec.id and is_plugin(spec.id):
        text = f"{spec.id} is not an installed plugin: `mpdit train` decodes these latents only with --trust"
        report(Warning(code="autoencoder-not-installed", text=text))
    if (options.reference_stats or options.reconstruction_fid) and world.is_main:
        from mpdit_core.evaluation import require_features

        require_features("inception", device)
    if options.normalisation == "published":
        require_published(spec.channels)
    folder.require_plan(plan)
    teacher = open_teacher(options, plan, source, autoencoder)
    if teacher and not options.replace_teacher:
        TeacherFolder(folder.path).require_plan(teacher.plan)
    world.barrier()
    return EncodeJob(
        options=options,
        plan=plan,
        folder=folder,
        source=source,
        shards_of=shards_of,
        autoencoder=autoencoder,
        teacher=teacher,
        world=world,
        report=report,
    )


def _open_images(
    given: str, options: EncodeOptions, *, device: torch.device, world: World, report: Reporter
) -> tuple[EncodingPlan, Dataset, LoadedAutoencoder, MakeShards]:
    """The fields of an `EncodeJob` for the images of the source `given`."""
    source = open_source(given, split=options.split, **source_arguments(options))
    autoencoder = _load_autoencoder(options, source, device=device, world=world)
    own = getattr(source, "resolution", None)
    resolution = options.resolution or (Size.parse(own) if own else DEFAULT_RESOLUTION)
    autoencoder.require_resolution(resolution)
    folder = EncodingFolder(output_folder(options, resolution))
    report(Note(text=f"finding the images of {given}"))
    begun = folder.plan()
    plan = world.broadcast_object(make_plan(options, source, autoencoder, resolution=resolution, begun=begun))
    autoencoder.precision = plan.precision
    for note in source_notes(source):
        report(note)
    shards_of = partial(
        encode_shards,
        source,
        plan,
        encoder=latents_encoder(autoencoder, plan),
        workers=options.workers or usable_cores(),
        skip_faulty=options.on_error == "skip",
    )
    return plan, source, autoencoder, shards_of


def _open_import(
    given: str, options: EncodeOptions, *, device: torch.device, world: World, report: Reporter
) -> tuple[EncodingPlan, None, LoadedAutoencoder, MakeShards]:
    """The fields of an `EncodeJob` for latents of another program in the folder `given`."""
    found = find_foreign_latents(Path(given))
    autoencoder = _load_autoencoder(options, None, device=device, world=world)
    latent_format = detect_format(found, autoencoder.spec, scale=options.latents_scale)
    report(Note(text=latent_format.text))
    plan = plan_import(options, found, latent_format)
    return plan, None, autoencoder, partial(import_shards, found, latent_format, plan)


def _load_autoencoder(
    options: EncodeOptions, source: Dataset | None, *, device: torch.device, world: World
) -> LoadedAutoencoder:
    """Loads it on rank 0 first, so that only one process downloads it."""
    name = options.autoencoder or getattr(source, "autoencoder", None) or DEFAULT_AUTOENCODER
    if not world.is_main:
        world.barrier()
    mode = {"mode": options.mode} if options.mode else {}
    loaded = load_autoencoder(name, device=device, options=options.autoencoder_options | mode)
    if world.is_main:
        world.barrier()
    return loaded
