"""What is evaluated: a model that is sampled on the way, or finished samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mpdit_core import plugins
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.evaluation.images import ImageSource, SpreadImages, open_images
from mpdit_core.evaluation.options import EvaluateOptions
from mpdit_core.evaluation.record import ModelRecord, SamplingRecord
from mpdit_core.evaluation.samples import SampledImages, is_sample_set
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.runtime.precision import choose_dtype, dtype_name
from mpdit_core.sampling import PluginRecord, SamplingOptions, sampling_values, settle

DEFAULT_SAMPLES = 50_000


@dataclass(frozen=True)
class Subject:
    """A model or finished images, opened and checked; no weights are loaded yet. One of the two is None."""

    model: ModelFolder | None
    images: ImageSource | None

    @property
    def latents(self) -> LatentSpec | None:
        """The latents that the model was trained on, where they are known."""
        if self.model:
            return self.model.latents
        return self.images.latents if isinstance(self.images, SampledImages) else None

    @property
    def resolution(self) -> int | None:
        """Side of the images in pixels."""
        if self.images:
            return self.images.resolution
        return self.latents.resolution if self.latents else None

    def taking(self, wanted: int | None) -> tuple[Subject, int]:
        """The images to evaluate, and their number: the first ones, or ones at even distances where they are sorted.

        Raises:
            UserError: more are wanted than there are (`too-few-images`).
        """
        if self.images is None:
            return self, wanted or DEFAULT_SAMPLES
        there = self.images.count
        if wanted and wanted > there:
            raise UserError(
                f"{wanted} images to evaluate, but there are {there}",
                code="too-few-images",
                remedy=f"--num-samples {there}, or more samples",
            )
        if wanted and wanted < there and self.images.sorted_by_class:
            return replace(self, images=SpreadImages(self.images, wanted)), wanted
        return self, wanted or there

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
        if self.model:
            return ModelRecord(
                path=str(self.model.path),
                weights_sha256=self.model.weights_sha256,
                step=self.model.step,
                preset=self.model.config.preset,
                autoencoder=self.model.latents.autoencoder if self.model.latents else None,
            )
        return self.images.model() if isinstance(self.images, SampledImages) else None

    def sampling_record(self, options: EvaluateOptions, device: torch.device) -> SamplingRecord | None:
        """How the images are sampled, or were. Raises `UserError` for an option that cannot be."""
        if self.model:
            return _sampling_record(self.model, options, device)
        return self.images.sampling() if isinstance(self.images, SampledImages) else None

    def labels(self, options: EvaluateOptions, count: int) -> list[int] | None:
        """Class of each image, where it is known."""
        if self.images:
            return self.images.labels and self.images.labels[:count]
        assert self.model is not None
        label_of = settle(self.model, options).labels
        return [label_of(index) for index in range(count)]


def open_model_or_samples(what: str, *, device: torch.device | None = None) -> Subject:
    """The model, or the finished samples, that `what` names.

    Args:
        device: where samples that were kept as latents are decoded.

    Raises:
        UserError: it is neither.
    """
    path = Path(what).expanduser()
    looks_like_model = any((path / name).exists() for name in ("checkpoints", "config.json", "config.toml"))
    if what.startswith("hf:") or looks_like_model:
        return Subject(open_model(what), None)
    if not path.exists():
        raise UserError(
            f"{what} does not exist",
            code="no-such-file",
            expected="a run, a checkpoint, an export or hf:ORG/NAME; or a folder, .npz or .safetensors of samples",
        )
    if is_sample_set(path):
        return Subject(None, SampledImages(path, device or torch.device("cpu")))
    return Subject(None, open_images(path))


def _sampling_record(model: ModelFolder, options: EvaluateOptions, device: torch.device) -> SamplingRecord:
    model.require_flow()
    settled = settle(model, options)
    sampler = plugins.record("samplers", options.sampler, settled.sampler)
    chosen = dict(sampler["options"])
    filled = {"num_steps": chosen.pop("num_steps"), "sampler_options": chosen}
    return SamplingRecord(
        options=SamplingOptions(**sampling_values(options) | filled),
        sampler=PluginRecord(**sampler),
        guide=settled.guide.weights_sha256 if settled.guide else None,
        dtype=dtype_name(choose_dtype(options.precision, device, model.config.model)),
    )
