"""Sets of samples that `sample` wrote, as images to measure: their own images alone, and how they were made.

And the images that a folder of latents decodes to: measured against those it was made from, rFID.

Images come in order of their index, in whatever folders they are, so that chunks of the Inception Score are those of an
evaluation of the model itself. The same seed and options then give the same figures in both ways.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mpdit_core.data.autoencoders import LoadedAutoencoder, load_autoencoder
from mpdit_core.data.latents import LatentFolder, unstandardise
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.evaluation.images import FolderImages, ImageSource, NpzImages
from mpdit_core.evaluation.record import ImagesRecord, ModelRecord, SamplingRecord
from mpdit_core.runtime.checked_tensors import opened
from mpdit_core.runtime.files import sha256
from mpdit_core.sampling import SampleSet

DECODED_AT_ONCE = 32


def is_sample_set(path: Path) -> bool:
    """Whether `sample` wrote the folder `path`."""
    return (path / "samples.json").is_file()


class SampledImages(ImageSource):
    """The images of a complete set of samples, as an `ImageSource`.

    Args:
        device: where latents are decoded.

    Raises:
        UserError: not complete, images missing, or latents without the autoencoder that they belong to.
    """

    def __init__(self, path: Path, device: torch.device):
        self.set = SampleSet.open(path)
        if not self.set.complete:
            raise UserError(
                f"{path} is not complete",
                code="not-complete",
                expected=f"all {self.set.num_samples} images",
                remedy="run the same `mpdit sample` again; it resumes",
            )
        self.latents = self.set.latents
        self._images = self._open(Path(path), device)
        self.count, self.resolution, self.labels = self.set.num_samples, self._images.resolution, self._images.labels
        if self._images.count != self.count:
            raise _incomplete(path, f"{self._images.count} images", f"{self.count}, as its record says")

    @property
    def sorted_by_class(self) -> bool:
        return False  # by index, classes come in turn

    def compute_fingerprint(self) -> str:
        return self._images.fingerprint

    def batch(self, indices: Sequence[int]) -> Tensor:
        return self._images.batch(indices)

    def describe(self) -> ImagesRecord:
        kind = f"{self.set.format} by mpdit sample"
        return self._images.describe().model_copy(update={"kind": kind, "order": "by index"})

    def model(self) -> ModelRecord:
        model = self.set.model
        return ModelRecord(
            path=model.path,
            weights_sha256=model.weights_sha256,
            step=model.step,
            preset=model.preset,
            autoencoder=self.latents.autoencoder if self.latents else None,
        )

    def sampling(self) -> SamplingRecord:
        return SamplingRecord(
            options=self.set.options,
            sampler=self.set.sampler,
            guide=self.set.guide,
            dtype=self.set.model.dtype,
            nfe=self.set.nfe,
        )

    def _open(self, path: Path, device: torch.device) -> ImageSource:
        if self.set.format == "npz":
            return NpzImages(path / "samples.npz")
        if self.set.format == "latents":
            if self.latents is None:
                raise UserError(
                    f"{path} holds latents, and its record does not say of which autoencoder",
                    code="no-autoencoder",
                    expected="images, or latents of a model that knows its autoencoder",
                    remedy="mpdit sample --format png or npz, or mpdit eval-fid MODEL",
                )
            return DecodedLatents(path / "latents", self.latents, device)
        images = FolderImages(path / "images")
        numbers = {file: _number(file.parts[-1]) for file in images.files}
        images.files.sort(key=lambda file: numbers[file])  # one folder per class has them in another order
        if sorted(numbers.values()) != list(range(len(images.files))):
            raise _incomplete(path, "other files than its images", f"images 0 to {self.set.num_samples - 1}, each once")
        return images


class DecodedLatents(ImageSource):
    """Latents in the files of a set of samples, decoded as they are asked for."""

    def __init__(self, path: Path, spec: LatentSpec, device: torch.device):
        self.path, self.spec, self.device = path, spec, device
        self.resolution = spec.resolution
        self._where: dict[int, tuple[Path, int]] = {}
        labels: dict[int, int] = {}
        for file in sorted(path.glob("*.safetensors")):
            tensors = _load(file, ("indices", "labels"))
            stored = [tensor.reshape(-1).tolist() for tensor in tensors.values()]
            for row, (index, label) in enumerate(zip(*stored, strict=False)):
                self._where[index] = file, row
                labels[index] = int(label)
        self.count = len(self._where)
        if sorted(self._where) != list(range(self.count)):
            raise _incomplete(path, "some of its latents", "all of them, each once")
        self.labels = [labels[i] for i in range(self.count)]

    def batch(self, indices: Sequence[int]) -> Tensor:
        stored = {file: _load(file, ("latents",))["latents"] for file in {self._where[i][0] for i in indices}}
        latents = torch.stack([stored[file][row] for file, row in (self._where[i] for i in indices)])
        parts = [
            self._autoencoder.decode(unstandardise(part.to(self.device), self.spec.normalisation)).cpu()
            for part in latents.split(DECODED_AT_ONCE)
        ]
        return torch.cat(parts)

    def compute_fingerprint(self) -> str:
        digest = hashlib.sha256(self.spec.autoencoder.model_dump_json().encode())
        for file in sorted(self.path.glob("*.safetensors")):
            digest.update(sha256(file).encode())
        return digest.hexdigest()

    def describe(self) -> ImagesRecord:
        return ImagesRecord(kind="latents", path=str(self.path), sha256=self.fingerprint, order="by index")

    @cached_property
    def _autoencoder(self) -> LoadedAutoencoder:
        return load_autoencoder(self.spec.autoencoder, device=self.device)


class ReconstructedImages(ImageSource):
    """What the latents of a finished folder decode to: the means of their posteriors.

    Args:
        trust: whether the autoencoder that the folder names may be code that is not installed.
    """

    def __init__(self, path: Path, device: torch.device, *, trust: bool = False):
        self.folder, self.device, self.trust = LatentFolder(path), device, trust
        self.latents = self.folder.spec
        self.count, self.resolution = len(self.folder), self.latents.resolution
        self.labels = self.folder.labels.tolist()

    def batch(self, indices: Sequence[int]) -> Tensor:
        parts = self.folder.batch(indices).mean.split(DECODED_AT_ONCE)
        return torch.cat([self._autoencoder.decode(part).cpu() for part in parts])

    def compute_fingerprint(self) -> str:
        shards = " ".join(shard.sha256 for shard in self.folder.manifest.shards)
        return hashlib.sha256(f"{self.latents.autoencoder.model_dump_json()} {shards}".encode()).hexdigest()

    def describe(self) -> ImagesRecord:
        return ImagesRecord(
            kind="decoded latents", path=str(self.folder.path), sha256=self.fingerprint, order="as in the folder"
        )

    @cached_property
    def _autoencoder(self) -> LoadedAutoencoder:
        return load_autoencoder(self.latents.autoencoder, device=self.device, trust=self.trust)


def _incomplete(path: Path, there: str, expected: str) -> UserError:
    return UserError(
        f"{path} holds {there}",
        code="not-complete",
        expected=expected,
        remedy="sample them again, or evaluate the folder images/ by itself",
    )


def _load(file: Path, names: Sequence[str]) -> dict[str, Tensor]:
    with opened(file) as tensors:
        return {name: tensors.get_tensor(name) for name in names}


def _number(name: str) -> int:
    """The number of an image from its file's name; -1 where the name is no number."""
    stem = name.partition(".")[0]
    return int(stem) if stem.isdecimal() else -1
