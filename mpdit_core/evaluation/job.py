"""`eval-fid`: measures a model, or finished samples, against a reference, and writes a record.

Everything that may be missing or not fit is checked before the first image is measured or sampled.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mpdit_core import plugins
from mpdit_core.errors import UserError
from mpdit_core.evaluation.collecting import Blocks, collect, finished_blocks, sampled_blocks
from mpdit_core.evaluation.images import ImageSource, are_sorted
from mpdit_core.evaluation.metric_values import FEW, Values, compute_metrics, key_and_label, needs_rows
from mpdit_core.evaluation.options import EvaluateOptions, ReferenceResult
from mpdit_core.evaluation.progress import Cost, locked_by_main
from mpdit_core.evaluation.record import (
    SAMPLING_OPTIONS,
    Conditions,
    EvaluationRecord,
    ExtractorRecord,
    RecordedWarning,
    ReferenceRecord,
    RulesRecord,
)
from mpdit_core.evaluation.reference import (
    ReferencePlan,
    measure_reference,
    plan_reference,
    require_statistics,
    write_npz,
)
from mpdit_core.evaluation.subject import Subject, open_model_or_samples, require_what
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.features import Inception, features_name, load_extractor
from mpdit_core.metrics.neighbours import NEIGHBOURS
from mpdit_core.metrics.scores import IS_CHUNK
from mpdit_core.protocols import FeatureExtractor
from mpdit_core.reporting import Note, Reporter, Saved, Warning, silent
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.sampling import Generator, options_without_effect, warn_if_given
from mpdit_core.version import __version__

PACKAGES = ("torch", "torchvision", "torch-fidelity", "diffusers", "numpy", "pillow")


def evaluate(options: EvaluateOptions, *, report: Reporter = silent) -> EvaluationRecord:
    """Measures `options.what` against the reference, or reads the record of an earlier call with the same options.

    Raises:
        UserError: something is missing or does not fit; or later, an image cannot be read or is not finite.
        Interrupted: a signal came; the same call resumes.
    """
    device = select_device(options.device)
    with process_group(device) as world:
        subject = open_model_or_samples(options, device)
        extractor = _extractor(options, device)
        # A reference that is not given is the data of these latents: it is read in the mode that they were encoded in.
        latents = None if options.reference else subject.latents
        plan = plan_reference(
            subject.reference(options.reference),
            resolution=subject.resolution,
            extractor=extractor,
            mode=latents.autoencoder.mode if latents else "RGB",
            typed=options.reference is not None,
            trust=options.trust,
        )
        require_statistics(plan, extractor, device)
        _require_enough(options, plan, subject.count)
        # Rank 0's conditions, because they contain a measured precision and give the record's name.
        conditions = world.broadcast_object(_conditions(options, subject, extractor, device))
        path = (options.out or subject.evals_folder()) / conditions.file_name(plan.fingerprint(), options.keep_samples)

        record = None if options.force else world.on_main(lambda: _measured_before(path, report))
        if record is not None:
            report(Saved(what="record", path=path))
            return record

        started, rows = time.monotonic(), needs_rows(options)
        events = [*_notes_of("samples", subject.images), *_notes_of("reference", plan.images)]
        events += _warnings_of_inputs(options, subject, extractor)
        for event in events:
            report(event)
        partial, kept = path.with_suffix(".partial"), path.with_suffix("") if options.keep_samples else None
        accumulator = FeatureAccumulator(subject.count, keep=range(subject.count if rows else 0), device=device)

        def write_record(cost: Cost) -> EvaluationRecord:
            metrics = compute_metrics(options, reference, accumulator, conditions.keys)
            if few := _few_samples(conditions, metrics):
                events.append(few)
                report(few)
            spent, seconds = cost if subject.model else None, time.monotonic() - started
            return _record(conditions, metrics, reference.about, events, spent, seconds).write(path)

        with locked_by_main(partial, world, report=report):
            # Before the reference is measured, because it refuses a model without its autoencoder, among others.
            blocks = _blocks(subject, options, device, world, keep=kept)
            reference = measure_reference(plan, extractor, device=device, world=world, report=report, rows=rows)
            record = collect(
                blocks,
                extractor,
                accumulator,
                folder=partial,
                world=world,
                report=report,
                task="evaluate",
                finish=write_record,
            )
    report(Saved(what="record", path=path))
    return record


def _measured_before(path: Path, report: Reporter) -> EvaluationRecord | None:
    """The record at `path`, with its warnings reported; None where there is none, or it cannot be read."""
    if not path.exists():
        return None
    try:
        record = EvaluationRecord.read(path)
    except UserError as error:
        report(Warning(code="damaged-record", text=f"{error.what}: measured again"))
        return None
    report(Note(text=f"already measured: {path}"))
    for warning in record.warnings:
        report(Warning(code=warning.code, text=warning.text))
    return record


def _blocks(
    subject: Subject, options: EvaluateOptions, device: torch.device, world: World, *, keep: Path | None
) -> Blocks:
    """The images to measure. A model is loaded, but samples nothing yet. `keep`: folder for the images it samples."""
    if subject.images is not None:
        return finished_blocks(subject.images, subject.count)
    assert subject.model is not None
    generator = Generator(subject.model, options, device=device, num_samples=subject.count)
    generator.types = world.broadcast_object(generator.types)
    return sampled_blocks(generator, keep=keep)


def _record(
    conditions: Conditions,
    metrics: Values,
    reference: ReferenceRecord,
    events: Sequence[Note | Warning],
    cost: Cost | None,
    seconds: float,
) -> EvaluationRecord:
    """The record. `events`: what was reported; `cost`: of images that were sampled for it, None for finished ones."""
    if cost and conditions.sampling:
        spent = {"nfe": round(cost.nfe, 2), "passes": round(cost.passes, 2)}
        conditions = conditions.model_copy(update={"sampling": conditions.sampling.model_copy(update=spent)})
    warnings = [event for event in events if isinstance(event, Warning)]
    return EvaluationRecord(
        **conditions.__dict__,
        metrics=metrics,
        reference=reference,
        warnings=tuple(RecordedWarning(code=warning.code, text=warning.text) for warning in warnings),
        seconds=round(seconds, 3),
    )


def make_reference(options: EvaluateOptions, *, report: Reporter = silent) -> ReferenceResult:
    """Writes the file `options.make_reference`, an ADM-compatible `.npz` of `options.what`.

    Raises:
        UserError: as `plan_reference`; or a file without the ending `.npz`.
    """
    out, source = options.make_reference, require_what(options)
    if out is None or out.suffix != ".npz":
        raise UserError(f"the reference file {out}", code="invalid-value", expected="a file ending in .npz")
    device = select_device(options.device)
    extractor = _extractor(options, device)
    plan = plan_reference(source, resolution=options.resolution, extractor=extractor, trust=options.trust)
    images = plan.images
    if images is None:
        raise UserError(
            f"{source} holds no images", code="no-images", expected="a folder, a data set or latents, or arr_0"
        )
    unused = ["reference", "num_samples", "metrics", "half_distances", "bootstrap", "sweep", "keep_samples"]
    why = "a reference is made from all images in WHAT"
    for event in [*warn_if_given(options, SAMPLING_OPTIONS + unused, why), *_notes_of("reference", images)]:
        report(event)
    with process_group(device) as world:
        plan = replace(plan, statistics=None)  # its own statistics are measured anew
        reference = measure_reference(plan, extractor, device=device, world=world, report=report)
        if world.is_main:
            write_npz(out, reference, images, features_name(extractor))
    report(Saved(what="reference", path=out))
    return ReferenceResult(path=out, count=images.count, features=extractor.name)


def _extractor(options: EvaluateOptions, device: torch.device) -> FeatureExtractor:
    return load_extractor(options.features, device=device, weights=options.weights, options=options.feature_options)


def require_features(name: str, device: torch.device, *, trusted: bool = True) -> None:
    """Raises `UserError` where the feature extractor `name` is missing, cannot be loaded, or is not trusted.

    Args:
        trusted: False for a name that was read from a file.
    """
    plugins.load("features", name, trusted=trusted)
    load_extractor(name, device=device)


def _require_enough(options: EvaluateOptions, reference: ReferencePlan, count: int) -> None:
    least = NEIGHBOURS + 1 if {"precision", "recall"} & set(options.metrics) else 2
    of_reference = reference.images.count if reference.images else least
    for name, number in (("samples", count), ("reference images", of_reference)):
        if number < least:
            raise UserError(
                f"there are only {number} {name}",
                code="too-few-images",
                expected=f"at least {least} for {', '.join(options.metrics)}",
            )


def _conditions(
    options: EvaluateOptions, subject: Subject, extractor: FeatureExtractor, device: torch.device
) -> Conditions:
    published = extractor.is_published if isinstance(extractor, Inception) else None
    names = {metric: key_and_label(metric, published, options.features) for metric in options.metrics}
    return Conditions(
        what=require_what(options),
        count=subject.count,
        is_fid=published is True,
        keys={metric: key for metric, (key, _) in names.items()},
        labels=dict(names.values()),
        extractor=ExtractorRecord(
            plugin=plugins.record("features", options.features, extractor),
            published=published,
            fingerprint=extractor.fingerprint(),
            weights=str(getattr(extractor, "weights_path", None) or ""),
            weights_sha256=getattr(extractor, "weights_sha256", ""),
            resize=getattr(extractor, "resize_rule", ""),
        ),
        rules=RulesRecord(
            distances="float16" if options.half_distances else "float32, in doubt float64",
            neighbours=NEIGHBOURS,
            is_chunk=IS_CHUNK,
            bootstrap=options.bootstrap,
        ),
        samples=subject.images.record if subject.images else None,
        model=subject.model_record(),
        sampling=subject.sampling_record(device),
        device=device.type,
        versions={name: plugins.installed_version(name) for name in PACKAGES}
        | {"mpdit": __version__, "python": platform.python_version()},
    )


def _notes_of(what: str, images: ImageSource | None) -> list[Note | Warning]:
    """The notes and warnings about how the images were found. `what`: their name in the texts."""
    return [replace(note, text=f"{what}: {note.text}") for note in images.notes] if images else []


def _warnings_of_inputs(options: EvaluateOptions, subject: Subject, extractor: FeatureExtractor) -> Iterator[Warning]:
    """Warnings about options without effect, and about inputs that make the metrics unreliable."""
    yield from warn_if_given(options, ["resolution"], "it applies to make_reference only")
    if subject.model:
        yield from options_without_effect(options, sweep=options.sweep)
    else:
        yield from warn_if_given(
            options, [*SAMPLING_OPTIONS, "keep_samples"], "the samples are finished images; nothing is sampled"
        )
    if not {"precision", "recall"} & set(options.metrics):
        yield from warn_if_given(options, ["half_distances"], "precision and recall are not measured")
    if "fid" not in options.metrics:
        yield from warn_if_given(options, ["bootstrap"], "the Fréchet distance is not measured")
    if isinstance(extractor, Inception) and not extractor.is_published:
        text = f"{extractor.weights_path} are not the published weights: the metrics are not comparable with any others"
        yield Warning(code="unpublished-weights", text=text)
    if subject.images and subject.images.lossy:
        text = "some samples are JPEG files: compression changed their pixels and so the metrics; use PNG or npz"
        yield Warning(code="lossy-samples", text=text)
    labels = subject.labels() if "is" in options.metrics else None
    if labels and are_sorted(labels) and len(set(labels)) < len(labels):
        text = "the samples are sorted by class: the Inception Score of contiguous chunks is much too low"
        yield Warning(code="sorted-samples", text=text)


def _few_samples(conditions: Conditions, metrics: Values) -> Warning | None:
    """The warning that the Fréchet distance is biased; None where it was not measured, or there are enough samples."""
    key = conditions.keys.get("fid")
    if key is None or conditions.count >= FEW:
        return None
    distance, bias = metrics[key], metrics[f"{key}_bias"]
    assert isinstance(distance, float)
    if not isinstance(bias, float) or bias <= 0:
        expected = "biased upwards"
    elif bias < distance:
        expected = f"about {bias:.3g} too high, estimated from the distance of random halves"
    else:
        expected = f"mostly bias, estimated as {bias:.3g} from the distance of random halves"
    text = f"with only {conditions.count} samples the Fréchet distance is {expected}; "
    return Warning(code="few-samples", text=text + "compare equal numbers of samples only")
