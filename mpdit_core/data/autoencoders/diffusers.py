"""Autoencoders of diffusers, from a folder with `config.json` and safetensors weights: any class that takes images.

Channels and factor are measured by passing an image through, not read from the config, whose keys differ from class to
class. `scaling_factor` and `shift_factor` are not used either: statistics measured over the data set replace them.
Networks are held in float32 and compute in float32, TF32 or bfloat16, never in float16, in which SDXL's decoder
overflows.

To support a class whose pixels are on [0, 1]: its name in `ON_UNIT_INTERVAL`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mpdit_core.data.autoencoders.pixel_range import to_pixels, to_range
from mpdit_core.errors import UserError
from mpdit_core.runtime.files import read_json, sha256

WEIGHTS = "diffusion_pytorch_model.safetensors"
ON_UNIT_INTERVAL = ("AutoencoderRAE",)
PROBED_AT = 128  # pixels; a multiple of every factor in use


@dataclass
class DiffusersAutoencoder:
    """An autoencoder of diffusers, read from `folder`. `load` measures the other fields if `channels` is 0."""

    folder: Path
    channels: int = 0
    factor: int = 0
    stores: Literal["mean+std", "mean", "uint8"] = "mean"
    resolution: int | None = None  # the only one accepted, for a network that scales every image to one size

    def load(self, device: torch.device) -> None:
        """Reads the weights onto `device`.

        Raises:
            UserError: no autoencoder that takes RGB images (`unknown-autoencoder`), no weights (`no-such-file`), or
                weights that do not fit (`damaged-file`).
        """
        kind = _class_name(self.folder)
        self.on_unit_interval = kind in ON_UNIT_INTERVAL
        self.network = _load_network(kind, self.folder).requires_grad_(False).eval().to(device)
        if device.type == "cuda":
            self.network.to(memory_format=torch.channels_last)
        if not self.channels:
            self._measure(kind, device)

    def encode(self, images: Tensor) -> Tensor:
        encoded = self._encoded(images)
        if self.stores == "mean":
            return encoded[0].float().contiguous()
        posterior = encoded.latent_dist
        return torch.cat([posterior.mean.float(), posterior.std.float()], dim=1).contiguous()

    def decode(self, raw_latents: Tensor) -> Tensor:
        values = self.network.decode(raw_latents).sample
        return to_pixels(values * 2 - 1 if self.on_unit_interval else values)

    def fingerprint(self) -> str:
        return sha256(self.folder / WEIGHTS)

    def _encoded(self, images: Tensor) -> Any:
        return self.network.encode(images.float() / 255 if self.on_unit_interval else to_range(images))

    @torch.inference_mode()
    def _measure(self, kind: str, device: torch.device) -> None:
        """Passes a black image to latents and back. Raises `UserError` (`unknown-autoencoder`) where that fails."""
        try:
            encoded = self._encoded(torch.zeros(1, 3, PROBED_AT, PROBED_AT, dtype=torch.uint8, device=device))
            self.stores = "mean+std" if "latent_dist" in encoded else "mean"
            mean = encoded.latent_dist.mean if self.stores == "mean+std" else encoded[0]
            decoded = self.network.decode(mean).sample
            _, self.channels, height, width = mean.shape
            _, colours, side, _ = decoded.shape
        except Exception as error:  # of video, of audio, of other channels: each class raises its own
            reason = str(error).partition("\n")[0]
            raise _unknown(f"{self.folder} holds {kind}, which does not accept an RGB image: {reason}") from error
        if colours != 3 or height != width or side % height:
            raise _unknown(f"{self.folder} holds {kind}, which decodes {list(mean.shape)} to {list(decoded.shape)}")
        self.factor = side // height
        self.resolution = side if side != PROBED_AT else None


def _class_name(folder: Path) -> str:
    """The name of an autoencoder's class in diffusers. Raises `UserError` (`unknown-autoencoder`) for anything else."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise _unknown(f"{folder} holds no autoencoder")
    if not kind.startswith(("Autoencoder", "VQModel")) or not hasattr(_diffusers(), kind):
        raise _unknown(f"{folder} holds a model of the class {kind}")
    return kind


def _unknown(what: str) -> UserError:
    return UserError(
        what,
        code="unknown-autoencoder",
        expected="config.json and weights of an autoencoder of RGB images that the installed diffusers has, such as "
        "AutoencoderKL, AutoencoderDC, AutoencoderTiny or VQModel",
    )


def _diffusers() -> Any:
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import diffusers  # 4 s: only when one is needed

    return diffusers


def _load_network(kind: str, folder: Path) -> Any:
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder / WEIGHTS} does not exist",
            code="no-such-file",
            expected="weights as safetensors (pickled ones are not read)",
            remedy="save the model with diffusers' `save_pretrained`, which writes safetensors",
        )
    try:
        network, info = getattr(_diffusers(), kind).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
        if info["missing_keys"]:  # diffusers would leave them as they were initialised
            raise ValueError(f"its weights lack {sorted(info['missing_keys'])[0]}")
    except Exception as error:  # diffusers, safetensors and torch raise many kinds for a file that does not fit
        lines = str(error).strip().splitlines()
        raise UserError(
            f"the autoencoder in {folder} does not load: {lines[0] if lines else type(error).__name__}",
            code="damaged-file",
            expected="config.json and complete weights of the same model",
            remedy="download it again",
        ) from error
    return network
