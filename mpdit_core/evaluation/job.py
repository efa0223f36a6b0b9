"""`eval-fid`: samples from a model, or finished ones, against a reference; the result says how it was made.

Everything that can be missing or wrong is found before the first image is sampled.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mpdit_core.errors import UserError
from mpdit_core.evaluation.accumulator import METRICS, Tally
from mpdit_core.evaluation.images import ImageSource, blocks, open_images
from mpdit_core.evaluation.record import FEW, EvaluateOptions, key_of, label_of, protocol, report, warnings_of
from mpdit_core.evaluation.reference import Plan, Reference, measure_reference, plan_reference, write_npz
from mpdit_core.evaluation.samples import SAMPLES, SampledImages
from mpdit_core.metrics.features import Inception, build_extractor, extract
from mpdit_core.metrics.neighbours import NEIGHBOURS, precision_recall
from mpdit_core.metrics.scores import bootstrap_std, frechet_distance, kernel_distance
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.reporting import Event, Note, Progress, Result, Saved, Warn
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.runtime.files import read_json, write_json
from mpdit_core.sampling.generator import Generation, SampleOptions, prepare, share

__all__ = ["EvaluateOptions", "SampleOptions", "evaluate", "make_reference", "measure", "open_what"]


def evaluate(what: str, options: EvaluateOptions, sampling: SampleOptions, *, out: Path | None, device: str = "auto"):
    """Events of one evaluation; the `Result` is the protocol record.

    Args:
        what: a model (run, checkpoint, export, `hf:`), or finished samples (folder, `.npz`, `.safetensors`).
        out: folder for the record; None: the run's `evals/`, or `./evals/`.

    Raises:
        UserError: anything missing or mismatched, before any image is sampled.
    """
    place = select_device(device)
    unknown = sorted(set(options.metrics) - set(METRICS))
    if unknown:
        raise UserError(f"--metrics {unknown[0]}", expected=", ".join(METRICS))
    with process_group(place) as world:
        yield from _evaluate(what, options, sampling, out, place, world)


def _evaluate(
    what: str, options: EvaluateOptions, sampling: SampleOptions, out: Path | None, device: torch.device, world: World
) -> Iterator[Event]:
    started = time.monotonic()
    model, images = open_what(what, device=device)
    extractor = build_extractor(
        options.features, weights=Path(options.weights) if options.weights else None, options=options.feature_options
    )
    extractor.load(device)
    if isinstance(extractor, Inception) and not extractor.is_published:
        yield Warn(text=f"{extractor.weights_path} are not the published weights: the figures compare with no others")
    count = _count(options, images)
    sampling = sampling.model_copy(update={"num_samples": count})
    resolution = images.resolution if images else (model.latents.resolution if model and model.latents else None)
    plan = plan_reference(_reference(options, model, images), resolution=resolution, extractor=extractor)
    _check_counts(options, plan, count)
    generation = prepare(model, sampling, device=device) if model else None
    record = protocol(what, options, sampling, model, images, extractor, generation, count, device)
    folder = out or (model.run / "evals" if model and model.run else Path("evals"))
    fixed = [record, plan.fingerprint(), options.keep_samples]
    identity = hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()[:10]
    path = folder / f"{options.features.replace(':', '-').replace('/', '-')}-{count}-{identity}.json"
    if path.is_file() and not options.force:
        record = read_json(path)
        yield Note(text=f"measured before; --force measures again: {path}")
        yield from report(record, path)
        return
    rows = bool({"precision", "recall", "kid"} & set(options.metrics)) or options.bootstrap > 0
    reference = yield from measure_reference(plan, extractor, device=device, world=world, rows=rows)
    partial = path.with_suffix(".partial")
    tally = Tally(count, keep=range(count if rows else 0), device=device, folder=partial)
    world.barrier()  # all have read what is there before the first writes anew
    if tally.done_before.any():
        yield Note(text=f"going on: {int(tally.done_before.sum())} of {count} images were measured before")
    cost: dict[str, Any] = {}
    try:
        source = _finished(images, count, world) if images else _sampled(generation, tally, world, cost)
        done = int(tally.done_before.sum())
        for indices, pictures in source:
            wanted = tally.todo(indices)
            if not wanted:
                continue
            pictures = pictures[[indices.index(i) for i in wanted]]
            tally.add(wanted, extract(extractor, pictures.to(device)))
            if options.keep_samples and model:
                _keep(path.with_suffix(""), wanted, pictures)
            done = min(done + len(wanted) * world.size, count)
            yield Progress(task="evaluate", done=done, total=count, unit="images")
    except BaseException:
        tally.save()
        raise
    tally.finish(world)
    if world.is_main:
        record |= {"metrics": measure(options, reference, tally), "reference": reference.about}
        if generation:
            record["sampling"] |= cost
        record["order"] = "by index of the images; Inception Score in contiguous chunks of 5000"
        record["warnings"] = warnings_of(options, record["metrics"], images, generation, count)
        record["seconds"] = round(time.monotonic() - started, 3)
        record["metrics"] = {key_of(k, record): v for k, v in record["metrics"].items()}
        record["labels"] = {key_of(k, record): label_of(k, record) for k in METRICS if k in options.metrics}
        write_json(path, record)
        tally.remove()
    record = world.broadcast_object(record)
    if options.keep_samples and model:
        yield Saved(what="samples", path=path.with_suffix(""))
    for text in record["warnings"]:
        yield Warn(text=text)
    yield from report(record, path)


def open_what(what: str, *, device: torch.device | None = None) -> tuple[ModelFolder | None, ImageSource | None]:
    """The model, or the finished samples, that `what` names. Raises `UserError` when it is neither.

    Args:
        device: where samples that were kept as latents are decoded.
    """
    path = Path(what).expanduser()
    looks_like_model = any((path / n).exists() for n in ("checkpoints", "config.json", "config.toml"))
    if what.startswith("hf:") or looks_like_model:
        return open_model(what), None
    if not path.exists():
        raise UserError(
            f"{what} does not exist",
            expected="a run, a checkpoint, an export or hf:ORG/NAME; or a folder, .npz or .safetensors of samples",
        )
    if (path / SAMPLES).is_file():
        return None, SampledImages(path, device or torch.device("cpu"))
    return None, open_images(path)


def measure(options: EvaluateOptions, reference: Reference, tally: Tally) -> dict[str, Any]:
    """The values of `options.metrics`, as far as the features allow them; None for what they do not."""
    wanted, values = set(options.metrics), {}
    pool, rows = tally.gaussian(), tally.kept_rows()
    own = rows if len(rows) == pool.count else None
    theirs = reference.rows if reference.rows is not None and len(reference.rows) == reference.pool.count else None
    if pool.size != reference.pool.size:
        raise UserError(f"the reference has {reference.pool.size} features, the samples {pool.size}")
    if "fid" in wanted:
        values["fid"] = frechet_distance(reference.pool, pool, rows_a=theirs, rows_b=own)
        if pool.count < FEW:
            halves = [frechet_distance(reference.pool, half) for half in tally.half_gaussians()]
            values["fid_bias"] = sum(halves) / len(halves) - values["fid"] if halves else None
        if options.bootstrap > 1 and own is not None:
            values["fid_std"] = bootstrap_std(reference.pool, own, replicates=options.bootstrap)
            values["fid_interval"] = [values["fid"] + sign * 1.96 * values["fid_std"] for sign in (-1, 1)]
    spatial = tally.spatial_gaussian()
    if "sfid" in wanted:
        there = spatial is not None and reference.spatial is not None
        values["sfid"] = frechet_distance(reference.spatial, spatial) if there else None  # pyright: ignore
    if "is" in wanted:
        score = tally.score_of_logits()
        values["is"], values["is_std"] = score if score else (None, None)
    if {"precision", "recall"} & wanted:
        pair = (None, None)
        if reference.rows is not None and min(len(reference.rows), len(rows)) > NEIGHBOURS:
            device = tally.device
            pair = precision_recall(reference.rows.to(device), rows.to(device), half=options.half_distances)
        values |= {k: v for k, v in zip(("precision", "recall"), pair, strict=True) if k in wanted}
    if "kid" in wanted:
        values["kid"], values["kid_std"] = (
            kernel_distance(reference.rows, rows) if reference.rows is not None else (None, None)
        )
    return values


def make_reference(
    out: Path, source: str, options: EvaluateOptions, *, resolution: int | None, device: str = "auto"
) -> Iterator[Event]:
    """Writes an ADM-compatible `.npz` of `source`. Raises `UserError` as `plan_reference`."""
    if out.suffix != ".npz":
        raise UserError(f"--make-reference {out}", expected="a file ending in .npz")
    place = select_device(device)
    extractor = build_extractor(
        options.features, weights=Path(options.weights) if options.weights else None, options=options.feature_options
    )
    extractor.load(place)
    plan = plan_reference(source, resolution=resolution, extractor=extractor)
    if plan.images is None:
        raise UserError(f"{source} holds no images", expected="a folder, a data set or latents, or arr_0")
    with process_group(place) as world:
        own = Plan(plan.images, None, plan.cache, plan.name, plan.resolution, plan.count)
        reference = yield from measure_reference(own, extractor, device=place, world=world)
        if world.is_main:
            write_npz(out, reference, own, extractor)
            yield Saved(what="reference", path=out)
            yield Result(data={"path": str(out), "count": plan.images.count, "features": extractor.name})


def _reference(options: EvaluateOptions, model: ModelFolder | None, images: ImageSource | None) -> str:
    if options.reference:
        return options.reference
    spec = model.latents if model else images.latents if isinstance(images, SampledImages) else None
    if spec is None:
        raise UserError("no reference to compare with", expected="--reference NPZ|DIR|SOURCE")
    if spec.folder and Path(spec.folder).is_dir():
        return spec.folder
    return spec.source


def _count(options: EvaluateOptions, images: ImageSource | None) -> int:
    if images is None:
        return options.num_samples or 50_000
    if options.num_samples and options.num_samples > images.count:
        raise UserError(
            f"--num-samples {options.num_samples}, but there are {images.count}",
            remedy=f"--num-samples {images.count}, or make more",
        )
    return options.num_samples or images.count


def _check_counts(options: EvaluateOptions, plan: Plan, count: int) -> None:
    for name, number in (("samples", count), ("reference images", plan.count)):
        least = NEIGHBOURS + 1 if {"precision", "recall"} & set(options.metrics) else 2
        if number is not None and number < least:
            raise UserError(
                f"{number} {name} are too few", expected=f"at least {least} for {', '.join(options.metrics)}"
            )


def _finished(images: ImageSource, count: int, world: World) -> Iterator[tuple[list[int], torch.Tensor]]:
    for block in blocks(count, 64, rank=world.rank, processes=world.size):
        yield list(block), images.batch(block)


def _sampled(
    generation: Generation | None, tally: Tally, world: World, cost: dict[str, Any]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    assert generation is not None
    done = [b for b in range(generation.num_blocks) if not tally.todo(generation.block_indices(b))]
    for batch in generation.batches(share(generation, world, done=done)):
        assert batch.images is not None
        cost["nfe"] = batch.nfe
        yield batch.indices, batch.images


def _keep(folder: Path, indices: list[int], images: torch.Tensor) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, image in zip(indices, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:06d}.png")
