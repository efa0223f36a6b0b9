"""Autoencoders of diffusers, from a folder with `config.json` and safetensors weights.

To add a class: a row in `CLASSES` with how it stores an image, and where its config says channels and factor.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mpdit_core.data.autoencoders.base import Autoencoder, to_pixels, to_range
from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.errors import UserError
from mpdit_core.runtime.files import read_json, sha256
from mpdit_core.runtime.precision import computing_in

WEIGHTS = "diffusion_pytorch_model.safetensors"

CLASSES: dict[str, Literal["mean+std", "mean"]] = {"AutoencoderKL": "mean+std"}


class DiffusersAutoencoder(Autoencoder):
    """An `AutoencoderKL` of diffusers, such as Stable Diffusion's: a posterior for each image."""

    def __init__(self, network: Any, *, spec: AutoencoderSpec, device: torch.device):
        self.network, self.spec, self.device = network, spec, device
        self.parameters = sum(parameter.numel() for parameter in network.parameters())

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        pixels = to_range(images.to(self.device, non_blocking=True))
        with computing_in(self.precision, self.device):
            posterior = self.network.encode(pixels).latent_dist
        return torch.cat([posterior.mean.float(), posterior.std.float()], dim=1).contiguous()

    @torch.inference_mode()
    def decode(self, raw_latents: Tensor) -> Tensor:
        with computing_in(self.decode_precision, self.device):
            return to_pixels(self.network.decode(raw_latents.to(self.device, torch.float32)).sample)


def load_diffusers(folder: Path, *, name: str, revision: str | None, device: torch.device) -> DiffusersAutoencoder:
    """The autoencoder in `folder`.

    Args:
        name: what the user called it, a folder or a Hub id.
        revision: the commit, if it comes from the Hub.

    Raises:
        UserError: no autoencoder of a known class, no weights, or weights that do not fit.
    """
    kind = _class_name(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"{weights} does not exist",
            code="no-such-file",
            expected="weights as safetensors (pickled ones are not read)",
            remedy="save the model with diffusers' `save_pretrained`, which writes safetensors",
        )
    network = _load_network(kind, folder)
    shape = network.config
    if shape["in_channels"] != 3 or shape["out_channels"] != 3:
        raise UserError(
            f"the autoencoder {name} takes {shape['in_channels']} channels", code="unknown-autoencoder", expected="RGB"
        )
    spec = AutoencoderSpec(
        id=name if revision else str(folder.absolute()),
        revision=revision,
        sha256=sha256(weights),
        factor=2 ** (len(shape["block_out_channels"]) - 1),
        channels=shape["latent_channels"],
        stores=CLASSES[kind],
    )
    network.requires_grad_(False).eval().to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    return DiffusersAutoencoder(network, spec=spec, device=device)


def _class_name(folder: Path) -> str:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in CLASSES:
        raise UserError(
            f"{folder} holds {f'a model of the class {kind}' if kind else 'no autoencoder'}",
            code="unknown-autoencoder",
            expected=f"config.json of an autoencoder of diffusers ({', '.join(CLASSES)}) and its weights",
        )
    return kind


def _load_network(kind: str, folder: Path) -> Any:
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import diffusers  # 4 s: only when one is needed

    try:
        return getattr(diffusers, kind).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers, safetensors and torch raise many kinds for a file that does not fit
        lines = str(error).strip().splitlines()
        raise UserError(
            f"the autoencoder in {folder} does not load: {lines[0] if lines else type(error).__name__}",
            code="damaged-file",
            expected="config.json and weights that belong together, complete",
            remedy="download it again",
        ) from error
