"""What `mpdit sample` wrote, as images to measure: its own pictures and nothing beside them, and how they were made.

Images come in order of their index, in whatever folders they lie, so that chunks of the Inception Score are those of
`eval-fid MODEL`. The same seed and options then give the same figures by both ways.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mpdit_core.data.autoencoders import Autoencoder, load_autoencoder
from mpdit_core.data.latents import unstandardise
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.evaluation.images import FolderImages, ImageSource, NpzImages
from mpdit_core.runtime.files import read_json, sha256

SAMPLES = "samples.json"
DECODED_AT_ONCE = 32


class SampledImages:
    """The images of a folder with `samples.json`, as an `ImageSource`.

    `sampling` and `model` are what the protocol record says of them; `latents` is the model's training data, where
    samples.json tells.

    Args:
        device: that latents are decoded on.

    Raises:
        UserError: not finished, images missing, or latents without the autoencoder they belong to.
    """

    def __init__(self, path: Path, device: torch.device):
        self.path = Path(path)
        manifest = read_json(self.path / SAMPLES)
        if not isinstance(manifest, dict) or "identity" not in manifest:
            raise UserError(f"{self.path / SAMPLES} is not what `mpdit sample` writes")
        identity = manifest["identity"]
        wanted = identity["options"]["num_samples"]
        if not manifest.get("complete"):
            raise UserError(
                f"{self.path} is not finished",
                expected=f"all {wanted} images",
                remedy="give the same `mpdit sample` again, it goes on",
            )
        model = manifest.get("model", {})
        self.latents = _read_spec(self.path, model.get("latents"))
        self.sampling = _sampling(manifest)
        self.model = identity["model"] | {
            "path": model.get("path"),
            "preset": model.get("preset"),
            "autoencoder": self.latents.autoencoder.model_dump(mode="json") if self.latents else None,
        }
        self.format: str = identity["format"]
        self._images = self._open(device)
        self.count, self.resolution, self.labels = wanted, self._images.resolution, self._images.labels
        if self._images.count != wanted:
            raise UserError(
                f"{self.path} holds {self._images.count} images",
                expected=f"{wanted}, as {SAMPLES} says",
                remedy="sample them again, or evaluate the folder images/ by itself",
            )

    def batch(self, indices: Sequence[int]) -> Tensor:
        return self._images.batch(indices)

    def fingerprint(self) -> str:
        return self._images.fingerprint()

    def describe(self) -> dict[str, Any]:
        return self._images.describe() | {"kind": f"{self.format} by mpdit sample", "order": "by index"}

    def _open(self, device: torch.device) -> ImageSource:
        if self.format == "npz":
            return NpzImages(self.path / "samples.npz")
        if self.format == "latents":
            if self.latents is None:
                raise UserError(
                    f"{self.path} holds latents, and {SAMPLES} does not say of which autoencoder",
                    expected="images, or latents of a model that knows its autoencoder",
                    remedy="mpdit sample --format png or npz, or mpdit eval-fid MODEL",
                )
            return DecodedLatents(self.path / "latents", self.latents, device)
        images = FolderImages(self.path / "images")
        numbers = {file: int(file.stem) if file.stem.isdecimal() else -1 for file in images.files}
        images.files.sort(key=lambda file: numbers[file])  # --by-class puts them into folders
        if sorted(numbers.values()) != list(range(len(images.files))):
            raise UserError(
                f"{self.path / 'images'} does not hold images 0 to {len(images.files) - 1}, each once",
                expected="the files that `mpdit sample` wrote, and no others",
                remedy="sample them again, or evaluate the folder images/ by itself",
            )
        return images


class DecodedLatents:
    """Latents that `mpdit sample --format latents` wrote, decoded as they are asked for."""

    def __init__(self, path: Path, spec: LatentSpec, device: torch.device):
        self.path, self.spec, self.device = path, spec, device
        self.resolution = spec.resolution
        self._where: dict[int, tuple[Path, int]] = {}
        labels: dict[int, int] = {}
        for file in sorted(path.glob("*.safetensors")):
            tensors = _load(file, ("indices", "labels"))
            for row, index in enumerate(tensors["indices"].tolist()):
                self._where[index] = file, row
                labels[index] = int(tensors["labels"][row])
        self.count = len(self._where)
        if sorted(self._where) != list(range(self.count)):
            raise UserError(f"{path}: latents are missing", expected=f"all up to number {max(self._where)}")
        self.labels: list[int] | None = [labels[i] for i in range(self.count)]

    def batch(self, indices: Sequence[int]) -> Tensor:
        stored = {file: _load(file, ("latents",))["latents"] for file in {self._where[i][0] for i in indices}}
        latents = torch.stack([stored[file][row] for file, row in (self._where[i] for i in indices)])
        parts = [
            self._autoencoder.decode(unstandardise(part.to(self.device), self.spec.normalisation)).cpu()
            for part in latents.split(DECODED_AT_ONCE)
        ]
        return torch.cat(parts)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.spec.autoencoder.model_dump_json().encode())
        for file in sorted(self.path.glob("*.safetensors")):
            digest.update(sha256(file).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        return {"kind": "latents", "path": str(self.path), "resize": "none", "order": "by index"}

    @cached_property
    def _autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.spec.autoencoder, device=self.device)


def _sampling(manifest: dict[str, Any]) -> dict[str, Any]:
    """As `evaluate_record.protocol` writes it for a model that is sampled on the way."""
    identity = manifest["identity"]
    plugin = identity["sampler"]
    options = dict(plugin["options"])
    return identity["options"] | {
        "sampler": plugin["name"],
        "num_steps": options.pop("num_steps", None),
        "sampler_options": options,
        "plugin": plugin,
        "guide": identity["guide"],
        "dtype": manifest.get("model", {}).get("dtype"),
        "nfe": manifest.get("result", {}).get("nfe"),
        "mpdit": manifest.get("mpdit"),
    }


def _read_spec(path: Path, stored: dict[str, Any] | None) -> LatentSpec | None:
    try:
        return LatentSpec.model_validate(stored, strict=False) if stored else None
    except ValidationError as error:
        raise UserError(f"{path / SAMPLES}: what it says of the latents is not readable: {error}") from error


def _load(file: Path, names: Sequence[str]) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}", remedy="sample them again") from error
