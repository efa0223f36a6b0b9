"""`encode-latents`: from images to a folder of latents. docs/data.md explains what is stored, and why.

Every process encodes its share of the shards; rank 0 checks, finishes and reports. The shards that a killed command
finished are kept, and the same command resumes from there. With `--teacher` a second pass follows (`teacher/`).
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial

from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import MANIFEST, normalisation_of, read_manifest
from mpdit_core.data.shards import write_shard
from mpdit_core.encoding.folder import TeacherFolder
from mpdit_core.encoding.options import EncodeOptions, EncodeResult
from mpdit_core.encoding.reconstruction import (
    draw_decoded,
    inspect_reconstruction,
    is_inspected,
    read_reconstruction,
)
from mpdit_core.encoding.setup import EncodeJob, open_job
from mpdit_core.encoding.teacher.store import store_features
from mpdit_core.encoding.verify import verify_features, verify_latents
from mpdit_core.encoding.work import make_shards
from mpdit_core.errors import UserError
from mpdit_core.reporting import Note, Reporter, Saved, Warning, silent
from mpdit_core.runtime import files
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group

RFID_IMAGES = 50_000


def encode_latents(options: EncodeOptions, *, report: Reporter = silent) -> EncodeResult:
    """Encodes the shards that are missing, and describes the finished folder.

    Raises:
        UserError: as the source, the autoencoder and `EncodingFolder`; before the first image where possible.
        Interrupted: a signal came; finished shards are kept.
    """
    device = select_device(options.device)
    with process_group(device) as world, ExitStack() as locks:
        job = open_job(options, device=device, world=world, report=report)
        unfinished = world.on_main(lambda: _lock_folder(job, locks))
        started = time.monotonic()
        if unfinished is not None:
            _encode(job, unfinished)
        elif world.is_main:
            _renormalise(job)
        encoded, seconds = job.plan.count_items(unfinished or ()), time.monotonic() - started
        if teacher := job.teacher_to_store():
            store_features(job, teacher)
        if world.is_main:
            if options.verify:
                verify_latents(job)
                verify_features(job)
            _inspect(job, is_new=unfinished is not None)
        rfid = _measure_rfid(job) if options.reconstruction_fid else None
        return _result(LatentFolder(job.folder.path), encoded=encoded, seconds=seconds, rfid=rfid)


def _lock_folder(job: EncodeJob, locks: ExitStack) -> list[int] | None:
    """Locks the folder until `locks` closes; returns the shards to encode, which no other command can change.

    Raises:
        UserError: as `_require_space` and `EncodingFolder`.
    """
    _require_space(job)
    locks.enter_context(job.folder.locked())
    job.folder.require_plan(job.plan)
    return job.unfinished_shards()


def _require_space(job: EncodeJob) -> None:
    """Raises `UserError` (`disk-full`) where the space is too small for the latents and features that are missing."""
    folder, plan = job.folder, job.plan
    need, free = plan.count_items(job.unfinished_shards() or ()) * plan.bytes_per_image, files.free_bytes(folder.path)
    if teacher := job.teacher_to_store():
        done = TeacherFolder(folder.path).shards() if folder.has_manifest else {}
        missing = (number for number in range(plan.num_shards) if number not in done)
        need += plan.count_items(missing) * teacher.plan.bytes_per_image
    if need > free:
        raise UserError(
            f"{folder.path} still needs {files.size_text(need)}, but {files.size_text(free)} are free there",
            code="disk-full",
            expected="enough space for all shards",
            remedy="free some space, choose another --out"
            + (", or --no-flip, which needs half of the space" if plan.flip else ""),
        )


def _encode(job: EncodeJob, unfinished: list[int]) -> None:
    """Encodes `unfinished` shards together with the other processes; rank 0 writes the manifest."""
    job.world.on_main(lambda: job.folder.begin(job.plan, job.folder.shards(job.plan)))
    if unfinished:
        finished = job.plan.num_shards - len(unfinished)
        kept = f"; {finished} of {job.plan.num_shards} shards are already there" if finished else ""
        count = job.plan.count_items(unfinished)
        what = f"encoding {count:,} images" if job.source else f"importing the latents of {count:,} images"
        text = (
            f"{what} at {job.plan.resolution} px with {job.plan.autoencoder.id} on {job.autoencoder.encode_device} "
            f"into {job.folder.path}{kept}"
        )
        job.report(Note(text=text))

    make_shards(
        job,
        unfinished,
        task="encode",
        encode=job.shards_of,
        write=partial(write_shard, job.folder.path, job.plan),
        records=job.folder,
    )
    job.world.on_main(lambda: job.folder.finish(job.plan, normalisation=job.options.normalisation))


def _renormalise(job: EncodeJob) -> None:
    """Changes the normalisation of a complete folder if another one is requested; nothing is encoded."""
    path, wanted = job.folder.path, job.options.normalisation
    job.report(Note(text=f"{path} is complete: nothing to encode"))
    old = read_manifest(path)
    if wanted and wanted != old.normalisation.name:
        norm = normalisation_of(wanted, old.measured_mean, old.measured_std)
        files.write_json(path / MANIFEST, old.model_copy(update={"normalisation": norm}).model_dump(mode="json"))
        text = f"normalisation changed from {old.normalisation.name} to {norm.name}; the shards are unchanged"
        job.report(Warning(code="normalisation-changed", text=text))


def _inspect(job: EncodeJob, *, is_new: bool) -> None:
    """Makes the files beside the latents: figures of the reconstruction, contact sheet, reference."""
    latents, images = LatentFolder(job.folder.path), job.options.reconstruction_images
    if job.source is None:
        draw_decoded(latents, job.autoencoder, report=job.report)
    elif is_new or not is_inspected(latents, images=images):
        inspect_reconstruction(latents, job.source, job.autoencoder, images=images, report=job.report)
    if job.options.reference_stats:
        _write_reference(job)


def _write_reference(job: EncodeJob) -> None:
    """Measures the reference statistics of eval-fid, and keeps them beside the latents."""
    from mpdit_core.evaluation import measure_reference, plan_reference
    from mpdit_core.metrics.features import load_extractor

    path, device = job.folder.path, job.autoencoder.device
    extractor = load_extractor("inception", device=device)
    plan = plan_reference(str(path), resolution=None, extractor=extractor, trust=_is_typed(job))
    measure_reference(plan, extractor, device=device, world=World(), report=job.report)
    job.report(Saved(what="reference statistics", path=path))


def _measure_rfid(job: EncodeJob) -> float | None:
    """FID of decoded latents against the images, recorded in evals/ of the folder. Every process takes part.

    None unless Inception has its published weights.
    """
    from mpdit_core.evaluation import EvaluateOptions, evaluate

    path = job.folder.path
    wanted = EvaluateOptions(
        what=str(path),
        reference=str(path),
        num_samples=min(RFID_IMAGES, read_manifest(path).count),
        metrics=("fid",),
        out=path / "evals",
        device=job.options.device,
        trust=_is_typed(job),
    )
    found = evaluate(wanted, report=job.report).metrics.get("fid")
    return found if isinstance(found, float) else None


def _is_typed(job: EncodeJob) -> bool:
    """Whether the user typed the source that is in the manifest, which may then be code."""
    return read_manifest(job.folder.path).plan.source.given == job.plan.source.given


def _result(latents: LatentFolder, *, encoded: int, seconds: float, rfid: float | None) -> EncodeResult:
    manifest, norm = latents.manifest, latents.manifest.normalisation
    plan, figures = manifest.plan, read_reconstruction(latents.path)
    teacher = manifest.teacher.plan if manifest.teacher else None
    return EncodeResult(
        latents=latents.path,
        count=manifest.count,
        classes=len(plan.class_names),
        resolution=plan.resolution,
        latent_shape=plan.latent_shape,
        autoencoder=plan.autoencoder.id,
        precision=plan.precision,
        stores=plan.autoencoder.stores,
        flips="stored" if plan.flip else "mirrored" if latents.has_flips else "none",
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        skipped=manifest.skipped,
        encoded_now=encoded,
        seconds=seconds,
        images_per_second=encoded / seconds if encoded and seconds > 0 else None,
        measured_mean=manifest.measured_mean,
        measured_std=manifest.measured_std,
        normalisation=norm.name,
        normalisation_mean=norm.mean,
        normalisation_std=norm.std,
        fingerprint=latents.spec.fingerprint,
        teacher=teacher.name if teacher else None,
        teacher_shape=teacher.stored_shape if teacher else None,
        psnr=figures.psnr if figures else None,
        ssim=figures.ssim if figures else None,
        rfid=rfid,
    )
