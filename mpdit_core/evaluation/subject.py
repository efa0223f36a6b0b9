"""What is evaluated: a model that is sampled during the evaluation, or finished samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import MANIFEST, LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.evaluation.images import ImageSource, evenly_spread_images, open_images
from mpdit_core.evaluation.options import EvaluateOptions
from mpdit_core.evaluation.record import ModelRecord, SamplingRecord
from mpdit_core.evaluation.samples import images_of, reconstructed_images
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.runtime.precision import choose_dtype, dtype_name
from mpdit_core.sampling import SampleSet, SamplingPlan
from mpdit_core.size import Size

DEFAULT_SAMPLES = 50_000


@dataclass(frozen=True)
class Subject:
    """`count` images that a model samples by `plan`, or finished `images`; one of the two is None."""

    count: int
    plan: SamplingPlan | None = None
    images: ImageSource | None = None
    sample_set: SampleSet | None = None  # the complete set that `images` belong to
    decoded: LatentSpec | None = None  # the latents that `images` are decoded from

    @property
    def model(self) -> ModelFolder | None:
        return self.plan.folder if self.plan else None

    @property
    def latents(self) -> LatentSpec | None:
        """The latents that the model was trained on, where they are known, or those that are decoded."""
        source = self.model or self.sample_set
        return source.latents if source else self.decoded

    @property
    def resolution(self) -> Size | None:
        source = self.images or self.latents
        return source.resolution if source else None

    def reference(self, given: str | None) -> str:
        """What to compare with: `given`, or the data that the model was trained on. Raises `UserError`."""
        if given:
            return given
        if self.latents is None:
            raise UserError(
                "no reference to compare with",
                code="no-reference",
                expected="an ADM .npz, a folder, a latents folder or a data set",
                remedy="--reference NPZ|DIR|SOURCE",
            )
        folder = self.latents.folder
        return folder if folder and Path(folder).is_dir() else self.latents.source

    def evals_folder(self) -> Path:
        """Where records go: the run's `evals`, or `evals` here."""
        return self.model.run / "evals" if self.model and self.model.run else Path("evals")

    def model_record(self) -> ModelRecord | None:
        """The model that makes or made the images, where it is known."""
        made = self.model or (self.sample_set.model if self.sample_set else None)
        if made is None:
            return None
        return ModelRecord(
            path=str(made.path),
            weights_sha256=made.weights_sha256,
            step=made.step,
            preset=made.config.preset if isinstance(made, ModelFolder) else made.preset,
            autoencoder=self.latents.autoencoder if self.latents else None,
        )

    def sampling_record(self, device: torch.device) -> SamplingRecord | None:
        """How the images are or were sampled, where it is known."""
        if samples := self.sample_set:
            assert samples.counts is not None, "only complete sets are measured"
            return SamplingRecord(
                options=samples.options,
                sampler=samples.sampler,
                guide=samples.guide,
                dtype=samples.model.dtype,
                nfe=samples.counts.nfe,
                passes=round(samples.counts.passes, 2),
            )
        if self.plan is None:
            return None
        options, sampler = self.plan.for_records()
        return SamplingRecord(
            options=options,
            sampler=sampler,
            guide=self.plan.guide.weights_sha256 if self.plan.guide else None,
            dtype=dtype_name(choose_dtype(self.plan.options.precision, device, self.plan.folder.config.model)),
        )

    def labels(self) -> list[int] | None:
        """The class of each image, where it is known."""
        if self.plan:
            return [self.plan.labels(index) for index in range(self.count)]
        return self.images.labels and self.images.labels[: self.count] if self.images else None


def open_model_or_samples(options: EvaluateOptions, device: torch.device) -> Subject:
    """The model, the finished samples, or the folder of latents that `options.what` names.

    Of finished images the first `options.num_samples` are taken, or evenly spread ones if they are sorted by class.
    No weights are loaded yet.

    Args:
        device: where latents are decoded.

    Raises:
        UserError: it is none of them, its sampling options do not fit, or there are too few images (`too-few-images`).
    """
    what, wanted = require_what(options), options.num_samples
    path = Path(what).expanduser()
    looks_like_model = any((path / name).exists() for name in ("checkpoints", "config.json", "config.toml"))
    if what.startswith("hf:") or looks_like_model:
        model = open_model(what if what.startswith("hf:") else path)
        model.require_flow()
        return Subject(wanted or DEFAULT_SAMPLES, SamplingPlan(model, options))
    if not path.exists():
        raise UserError(
            f"{what} does not exist",
            code="no-such-file",
            expected="a run, a checkpoint, an export or hf:ORG/NAME; or a folder, .npz or .safetensors of samples; "
            "or a folder of latents",
        )
    sample_set = SampleSet.open(path) if SampleSet.is_at(path) else None
    latents = LatentFolder(path) if (path / MANIFEST).is_file() else None
    if sample_set:
        images = images_of(sample_set, device)
    elif latents:
        images = reconstructed_images(latents, device, trust=options.trust)
    else:
        images = open_images(path)
    count = wanted or images.count
    if count > images.count:
        raise UserError(
            f"{count} images to evaluate, but there are {images.count}",
            code="too-few-images",
            expected=f"at most {images.count}",
            remedy=f"--num-samples {images.count}, or more samples",
        )
    if count < images.count and images.sorted_by_class:
        images = evenly_spread_images(images, count)
    return Subject(count, images=images, sample_set=sample_set, decoded=latents.spec if latents else None)


def require_what(options: EvaluateOptions) -> str:
    """What to evaluate. Raises `UserError` (`nothing-given`) where that was not given."""
    if options.what is None:
        raise UserError(
            "nothing to evaluate",
            code="nothing-given",
            expected="a model, or finished samples",
            remedy="e.g. mpdit eval-fid runs/xl-256-1",
        )
    return options.what
