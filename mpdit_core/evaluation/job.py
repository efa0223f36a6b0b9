"""`eval-fid`: a model, or finished samples, measured against a reference; the record says how.

Everything that can be missing or wrong is found before the first image is sampled.
"""

from __future__ import annotations

import platform
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mpdit_core import __version__, plugins
from mpdit_core.api import FeatureExtractor
from mpdit_core.errors import UserError
from mpdit_core.evaluation.collecting import Blocks, Collector, FinishedBlocks, SampledBlocks
from mpdit_core.evaluation.figures import FEW, Naming, compute_metrics, needs_rows
from mpdit_core.evaluation.images import ImageSource
from mpdit_core.evaluation.options import EvaluateOptions, ReferenceResult
from mpdit_core.evaluation.record import (
    EvaluationRecord,
    ExtractorRecord,
    Protocol,
    RecordedWarning,
    RulesRecord,
)
from mpdit_core.evaluation.reference import Plan, check_size, measure_reference, plan_reference, write_npz
from mpdit_core.evaluation.subject import Subject, open_model_or_samples
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.features import Inception, is_published, load_extractor
from mpdit_core.metrics.neighbours import NEIGHBOURS
from mpdit_core.metrics.scores import IS_CHUNK
from mpdit_core.reporting import Note, Reporter, Saved, Warning, silent
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.runtime.locks import locked
from mpdit_core.sampling import Generator, PluginRecord, SamplingOptions, options_without_effect, warn_if_given
from mpdit_core.settings import spelling_of

PACKAGES = ("torch", "torchvision", "torch-fidelity", "diffusers", "numpy", "pillow")


def evaluate(options: EvaluateOptions, *, report: Reporter = silent) -> EvaluationRecord:
    """Measures `options.what` against the reference. What was measured before under the same options is read.

    Raises:
        UserError: anything missing or mismatched, before any image is sampled.
        Interrupted: a signal came; the same call resumes.
    """
    return evaluate_as("evaluate", options, WarningList(report))


@dataclass
class WarningList:
    """Warnings of one evaluation. Each is reported at once, unless `said` has it already."""

    report: Reporter
    said: set[str] = field(default_factory=set)
    found: list[RecordedWarning] = field(default_factory=list)

    def add(self, code: str, text: str, *, once: str = "") -> None:
        """`once`: what it is said once for; its code, if not given."""
        self.found.append(RecordedWarning(code=code, text=text))
        if (once or code) not in self.said:
            self.said.add(once or code)
            self.report(Warning(code=code, text=text))

    def add_notes(self, what: str, images: ImageSource | None) -> None:
        """What is to be known of how images were found. `what`: which ones."""
        for note in images.notes() if images else []:
            text = f"{what}: {note.text}"
            if isinstance(note, Warning):
                self.add(note.code, text, once=text)
            elif text not in self.said:
                self.said.add(text)
                self.report(Note(text=text))


def evaluate_as(task: str, options: EvaluateOptions, warnings: WarningList) -> EvaluationRecord:
    """`evaluate`, whose progress is reported as `task`."""
    report, device = warnings.report, select_device(options.device)
    with process_group(device) as world:
        subject = open_model_or_samples(require_what(options), device=device)
        extractor = load_extractor(
            options.features, device=device, weights=options.weights, options=options.feature_options
        )
        subject, count = subject.taking(options.num_samples)
        plan = plan_reference(
            subject.reference(options.reference),
            resolution=subject.resolution,
            extractor=extractor,
            typed=options.reference is not None,
            trust=options.trust,
        )
        check_size(plan, extractor, device)
        _require_enough(options, plan, count)
        protocol = world.broadcast_object(_protocol(options, subject, extractor, count, device))
        path = (options.out or subject.evals_folder()) / protocol.file_name(plan.fingerprint(), options.keep_samples)
        record = None if options.force else world.broadcast_object(_measured_before(path, world, report))
        if record is not None:
            report(Note(text=f"measured before: {path}"))
            for warning in record.warnings:
                warnings.add(warning.code, warning.text)
        else:
            warnings.add_notes("samples", subject.images)
            warnings.add_notes("reference", plan.images)
            _warn_of_inputs(options, subject, extractor, count, warnings)
            measuring = _Measuring(options, subject, extractor, plan, protocol, path, world, warnings)
            record = measuring.run(task, device)
    report(Saved(what="record", path=path))
    return record


def _measured_before(path: Path, world: World, report: Reporter) -> EvaluationRecord | None:
    """The record at `path`; None where there is none that can be read, and in all processes but the main one."""
    if not world.is_main or not path.exists():
        return None
    try:
        return EvaluationRecord.read(path)
    except UserError as error:
        report(Warning(code="damaged-record", text=f"{error.what}: measured again"))
        return None


@dataclass(frozen=True)
class _Measuring:
    """One evaluation that was planned and checked."""

    options: EvaluateOptions
    subject: Subject
    extractor: FeatureExtractor
    plan: Plan
    protocol: Protocol
    path: Path
    world: World
    warnings: WarningList

    def run(self, task: str, device: torch.device) -> EvaluationRecord:
        started = time.monotonic()
        blocks = self._blocks(device)
        rows = needs_rows(self.options)
        reference = measure_reference(
            self.plan, self.extractor, device=device, world=self.world, report=self.warnings.report, rows=rows
        )
        count, partial = self.protocol.count, self.path.with_suffix(".partial")
        accumulator = FeatureAccumulator(count, keep=range(count if rows else 0), device=device)
        with locked(partial) if self.world.is_main else nullcontext():
            collector = Collector(
                blocks=blocks,
                extractor=self.extractor,
                accumulator=accumulator,
                folder=partial,
                world=self.world,
                report=self.warnings.report,
                task=task,
            )
            nfe = collector.run()
            record: EvaluationRecord | None = None
            if self.world.is_main:
                metrics = compute_metrics(self.options, reference, accumulator, self.protocol.keys)
                self._warn_of_bias(metrics)
                record = EvaluationRecord(
                    **self._protocol_with(nfe).__dict__,
                    metrics=metrics,
                    reference=reference.about,
                    warnings=tuple(self.warnings.found),
                    seconds=round(time.monotonic() - started, 3),
                ).write(self.path)
                collector.progress.remove()
        if self.world.is_main:
            with suppress(OSError):
                partial.rmdir()
        record = self.world.broadcast_object(record)
        assert record is not None
        return record

    def _blocks(self, device: torch.device) -> Blocks:
        if self.subject.images is not None:
            return FinishedBlocks(self.subject.images, self.protocol.count)
        assert self.subject.model is not None
        generator = Generator(self.subject.model, self.options, device=device, num_samples=self.protocol.count)
        generator.types = self.world.broadcast_object(generator.types)
        return SampledBlocks(generator, keep=self.path.with_suffix("") if self.options.keep_samples else None)

    def _protocol_with(self, nfe: float) -> Protocol:
        """The protocol with the cost of sampling, where that was paid here."""
        if self.subject.model is None or self.protocol.sampling is None:
            return self.protocol
        cost = {"nfe": round(nfe, 2)}
        return self.protocol.model_copy(update={"sampling": self.protocol.sampling.model_copy(update=cost)})

    def _warn_of_bias(self, metrics: dict) -> None:
        key, count = self.protocol.keys.get("fid"), self.protocol.count
        if key is None or count >= FEW:
            return
        distance, bias = metrics[key], metrics[f"{key}_bias"]
        if bias is None or bias <= 0:
            expected = "biased upwards"
        elif bias < distance:
            expected = f"about {bias:.3g} too high, judged by the distance of random halves"
        else:
            expected = f"mostly bias: that of random halves is {bias:.3g} larger"
        text = f"{count} samples are few: the Fréchet distance is {expected}; compare equal numbers only"
        self.warnings.add("few-samples", text)


def make_reference(options: EvaluateOptions, *, report: Reporter = silent) -> ReferenceResult:
    """Writes the file `options.make_reference`, an ADM-compatible `.npz` of `options.what`.

    Raises:
        UserError: as `plan_reference`, or a file that is no `.npz`.
    """
    out, source = options.make_reference, require_what(options)
    if out is None or out.suffix != ".npz":
        raise UserError(f"a reference in {out}", code="invalid-value", expected="a file ending in .npz")
    device = select_device(options.device)
    extractor = load_extractor(
        options.features, device=device, weights=options.weights, options=options.feature_options
    )
    plan = plan_reference(source, resolution=options.resolution, extractor=extractor, trust=options.trust)
    if plan.images is None:
        raise UserError(
            f"{source} holds no images", code="no-images", expected="a folder, a data set or latents, or arr_0"
        )
    for warning in _unused_for_a_reference(options):
        report(warning)
    WarningList(report).add_notes("reference", plan.images)
    with process_group(device) as world:
        own = Plan(plan.images, None, plan.cache, plan.name)
        reference = measure_reference(own, extractor, device=device, world=world, report=report)
        if world.is_main:
            write_npz(out, reference, own, extractor)
    report(Saved(what="reference", path=out))
    return ReferenceResult(path=out, count=plan.images.count, features=extractor.name)


def check_features(name: str, device: torch.device, *, trusted: bool = True) -> None:
    """Raises `UserError` now where the feature extractor `name` cannot be had or loaded, or is code that nobody typed.

    Args:
        trusted: False for a name that was read from a file.
    """
    plugins.load("features", name, trusted=trusted)
    load_extractor(name, device=device)


def require_what(options: EvaluateOptions) -> str:
    """What to evaluate. Raises `UserError` (`nothing-given`) where nothing was named."""
    if options.what is None:
        raise UserError(
            "nothing to evaluate",
            code="nothing-given",
            expected="a model, or finished samples",
            remedy="e.g. mpdit eval-fid runs/xl-256-1",
        )
    return options.what


def _require_enough(options: EvaluateOptions, plan: Plan, count: int) -> None:
    least = NEIGHBOURS + 1 if {"precision", "recall"} & set(options.metrics) else 2
    for name, number in (("samples", count), ("reference images", plan.count)):
        if number is not None and number < least:
            raise UserError(
                f"{number} {name} are too few",
                code="too-few-images",
                expected=f"at least {least} for {', '.join(options.metrics)}",
            )


def _protocol(
    options: EvaluateOptions, subject: Subject, extractor: FeatureExtractor, count: int, device: torch.device
) -> Protocol:
    described = _extractor_record(options, extractor)
    kind = {True: "published", False: "unpublished", None: "other"}[described.published]
    naming = Naming(kind, options.features)  # pyright: ignore[reportArgumentType]
    return Protocol(
        what=require_what(options),
        count=count,
        is_fid=is_published(extractor),
        keys=naming.keys(options.metrics),
        labels=naming.labels(options.metrics),
        extractor=described,
        rules=RulesRecord(
            distances="float16" if options.half_distances else "float32, in doubt float64",
            neighbours=NEIGHBOURS,
            is_chunk=IS_CHUNK,
            bootstrap=options.bootstrap,
        ),
        samples=subject.images.describe() if subject.images else None,
        model=subject.model_record(),
        sampling=subject.sampling_record(options, device),
        device=device.type,
        versions={name: _version(name) for name in PACKAGES}
        | {"mpdit": __version__, "python": platform.python_version()},
    )


def _extractor_record(options: EvaluateOptions, extractor: FeatureExtractor) -> ExtractorRecord:
    return ExtractorRecord(
        plugin=PluginRecord(**plugins.record("features", options.features, extractor)),
        published=is_published(extractor) if isinstance(extractor, Inception) else None,
        fingerprint=extractor.fingerprint(),
        weights=str(getattr(extractor, "weights_path", None) or ""),
        weights_sha256=getattr(extractor, "weights_sha256", ""),
        resize=getattr(extractor, "resize_rule", ""),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _unused(options: EvaluateOptions, subject: Subject) -> list[Warning]:
    """Warnings of options that change nothing in an evaluation of `subject`."""
    found = warn_if_given(options, ["resolution"], "it belongs to make_reference")
    if subject.model is None:
        found += warn_if_given(options, [*_SHAPING, "keep_samples"], "the images are finished; nothing is sampled")
    else:
        found += options_without_effect(options, sweep=options.sweep)
    if not {"precision", "recall"} & set(options.metrics):
        found += warn_if_given(options, ["half_distances"], "precision and recall are not measured")
    if "fid" not in options.metrics:
        found += warn_if_given(options, ["bootstrap"], "the Fréchet distance is not measured")
    return found


_SHAPING = [name for name, info in SamplingOptions.model_fields.items() if spelling_of(info).sweepable]
"""Options that shape sampled images."""


def _unused_for_a_reference(options: EvaluateOptions) -> list[Warning]:
    names = [*_SHAPING, "reference", "num_samples", "metrics", "half_distances", "bootstrap", "sweep", "keep_samples"]
    return warn_if_given(options, names, "a reference is made of all images of WHAT")


def _warn_of_inputs(
    options: EvaluateOptions, subject: Subject, extractor: FeatureExtractor, count: int, warnings: WarningList
) -> None:
    for unused in _unused(options, subject):
        warnings.add(unused.code, unused.text, once=unused.text)
    if isinstance(extractor, Inception) and not extractor.is_published:
        text = f"{extractor.weights_path} are not the published weights: the figures compare with no others"
        warnings.add("unpublished-weights", text)
    if subject.images is not None and subject.images.lossy:
        text = (
            "some samples are JPEG files: compression changed their pixels, and the figures with them; use PNG or npz"
        )
        warnings.add("lossy-samples", text)
    labels = subject.labels(options, count)
    if labels and "is" in options.metrics and 1 < len(set(labels)) < count and labels == sorted(labels):
        text = "the samples are sorted by class: the Inception Score of contiguous chunks is far too low"
        warnings.add("sorted-samples", text)
