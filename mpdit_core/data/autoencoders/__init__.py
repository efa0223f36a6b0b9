"""The autoencoders between pixels and raw latents. This file alone knows the range of pixels an encoder wants.

Shapes: images uint8 [B, 3, H, W]; moments float32 [B, 2C, h, w], posterior mean then standard deviation; raw_latents
[B, C, h, w] with h = H / factor.

To add one: a subclass of `Autoencoder` below, and a line in `load_autoencoder`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.errors import UserError
from mpdit_core.runtime.files import read_json, sha256

DEFAULT_AUTOENCODER = "stabilityai/sd-vae-ft-ema"
WEIGHTS = "diffusion_pytorch_model.safetensors"
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grey


class Autoencoder:
    """What jobs see of an autoencoder.

    `precision` may be set to `bfloat16` or `tf32` on GPUs before encoding, `decode_precision` to `bfloat16` anywhere
    before decoding.
    """

    spec: AutoencoderSpec
    device: torch.device
    precision: str = "float32"
    decode_precision: str = "float32"

    def encode(self, images: Tensor) -> Tensor:
        """Moments, float32 [B, 2C, h, w] on `device`, of `images` uint8 [B, 3, H, W] on any device."""
        raise NotImplementedError

    def decode(self, raw_latents: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] on `device` of `raw_latents [B, C, h, w]`."""
        raise NotImplementedError

    def check_resolution(self, resolution: int) -> None:
        """Raises `UserError` when `resolution` is no multiple of the autoencoder's factor."""
        factor = self.spec.factor
        if resolution < 1 or resolution % factor:
            near = max(factor, round(resolution / factor) * factor)
            raise UserError(
                f"--resolution {resolution} does not fit the autoencoder {self.spec.id}",
                expected=f"a multiple of {factor}",
                remedy=f"--resolution {near}",
            )


class PixelAutoencoder(Autoencoder):
    """The identity: latents are the pixels on [-1, 1], without spread. `gray`: one channel of luminance."""

    def __init__(self, *, gray: bool, device: torch.device):
        name = "pixels-gray" if gray else "pixels"
        self.spec = AutoencoderSpec(id=name, factor=1, channels=1 if gray else 3)
        self.gray, self.device = gray, device
        self.lookup = to_range(torch.arange(256)).half().numpy()  # float16 [256]: what is stored of each pixel value

    def encode(self, images: Tensor) -> Tensor:
        pixels = images.to(self.device).contiguous()
        if self.gray:
            weights = torch.tensor(LUMINANCE, device=self.device).view(1, 3, 1, 1)
            pixels = (pixels.float() * weights).sum(dim=1, keepdim=True).round()
        moments = torch.zeros(len(pixels), 2 * self.spec.channels, *pixels.shape[2:], device=self.device)
        moments[:, : self.spec.channels] = to_range(pixels)
        return moments

    def encode_picture(self, picture: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """The same for one picture uint8 [H, W, 3], on the CPU, at a fraction of the cost.

        Writes the means into `moments` float16 [2C, H, W] and leaves its spreads, which are zero, as they are.

        Returns:
            how often each pixel value occurs in each channel, int64 [C, 256].
        """
        planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
        if self.gray:
            weights = torch.tensor(LUMINANCE).view(3, 1, 1)
            planes = (torch.from_numpy(planes).float() * weights).sum(dim=0, keepdim=True).round().byte().numpy()
        np.take(self.lookup, planes, out=moments[: len(planes)], mode="clip")
        return np.array([Image.fromarray(plane).histogram() for plane in planes])

    def decode(self, raw_latents: Tensor) -> Tensor:
        return to_pixels(raw_latents.to(self.device)).expand(-1, 3, -1, -1)


class DiffusersAutoencoder(Autoencoder):
    """An `AutoencoderKL` of diffusers, such as Stable Diffusion's."""

    def __init__(self, network: Any, *, spec: AutoencoderSpec, device: torch.device):
        self.network, self.spec, self.device = network, spec, device

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        pixels = to_range(images.to(self.device, non_blocking=True))
        with precision(self.device, self.precision):
            posterior = self.network.encode(pixels).latent_dist
        return torch.cat([posterior.mean.float(), posterior.std.float()], dim=1).contiguous()

    @torch.inference_mode()
    def decode(self, raw_latents: Tensor) -> Tensor:
        narrow = self.decode_precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=narrow):
            return to_pixels(self.network.decode(raw_latents.to(self.device, torch.float32)).sample)


def to_range(images: Tensor) -> Tensor:
    """uint8 pixels as float32 on [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_pixels(values: Tensor) -> Tensor:
    """The nearest uint8 pixels to `values` on [-1, 1], as ADM's evaluation rounds: clamp(127.5·x + 128), truncated."""
    return (values.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def precision(device: torch.device, name: str) -> Any:
    """Context in which the encoder computes in `name`; float32 without TF32 unless it is asked for."""
    if device.type != "cuda":
        return torch.autocast(device.type, enabled=False)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=name == "bfloat16")


def load_autoencoder(
    id_or_spec: str | AutoencoderSpec,
    *,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> Autoencoder:
    """The autoencoder called `pixels`, `pixels-gray`, by a local folder, or by a Hub id; or that of a `spec`.

    A Hub id is looked for in the local cache first, then on the Hub.

    Raises:
        UserError: it is nowhere to be found, is of another kind, or is not the one the spec's hash was taken of.
    """
    device = torch.device(device)
    spec = id_or_spec if isinstance(id_or_spec, AutoencoderSpec) else None
    name = spec.id if spec else str(id_or_spec)
    if name in ("pixels", "pixels-gray"):
        return PixelAutoencoder(gray=name == "pixels-gray", device=device)
    folder, commit = locate_autoencoder(name, revision=spec.revision if spec else revision)
    loaded = _load_diffusers(folder, name=name, revision=commit, device=device)
    if spec and spec.sha256 and spec.sha256 != loaded.spec.sha256:
        raise UserError(
            f"the autoencoder {name} is another one than the latents were made with "
            f"(its weights hash to {loaded.spec.sha256}, expected {spec.sha256})",
            expected="the same weights" + (f", revision {spec.revision}" if spec.revision else ""),
            remedy="put the old weights back, or encode the images again",
        )
    return loaded


def locate_autoencoder(name: str, *, revision: str | None = None) -> tuple[Path, str | None]:
    """Folder with `config.json` and weights of autoencoder `name`, and the commit if it came from the Hub.

    Downloads it when it is not cached. Raises `UserError` when it cannot be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return next((f for f in (path, path / "vae") if (f / "config.json").is_file()), path), None
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"--autoencoder {name}: there is no such folder",
            expected="pixels, pixels-gray, a folder with config.json and its weights, or a Hub id ORG/NAME",
            remedy=f"the default is {DEFAULT_AUTOENCODER}",
        )
    folder = _from_hub(name, revision)
    commit = folder.name if folder.parent.name == "snapshots" else None
    return folder, commit


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import logging as hub_logging

    reason: Exception | None = None
    for local in (True, False):  # the cache first: no waiting for a network, and the same weights as last time
        try:
            if not local:
                _check_reachable(constants.ENDPOINT)
                hub_logging.set_verbosity_error()  # its retries are not news: the message below says it all
            config = hf_hub_download(name, "config.json", revision=revision, local_files_only=local)
            hf_hub_download(name, WEIGHTS, revision=revision, local_files_only=local)
            return Path(config).parent
        except HFValidationError as error:
            raise UserError(f"--autoencoder {name} is neither a folder nor a Hub id", expected="ORG/NAME") from error
        except Exception as error:  # of the HTTP library, which differs between versions, or of the Hub's answer
            reason = error
    home = constants.HF_HUB_CACHE
    at = f" at revision {revision}" if revision else ""
    raise UserError(
        f"the autoencoder {name}{at} is not in the local Hugging Face cache ({home}), and the Hub did not give it: "
        f"{_first_line(reason)}",
        expected="a cached or reachable model repository with config.json and " + WEIGHTS,
        remedy=f"on a machine with a network: `hf download {name}`, then set HF_HOME to that cache here; or "
        "--autoencoder DIR with a local copy",
    ) from reason


def _check_reachable(endpoint: str) -> None:
    """Raises `OSError` at once where the Hub's name does not resolve, instead of after half a minute of retries."""
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    host = urlsplit(endpoint).hostname
    if host and not proxied:
        socket.getaddrinfo(host, 443)


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _load_diffusers(folder: Path, *, name: str, revision: str | None, device: torch.device) -> DiffusersAutoencoder:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if not isinstance(config, dict) or config.get("_class_name") != "AutoencoderKL":
        kind = config.get("_class_name") if isinstance(config, dict) else None
        raise UserError(
            f"{folder} holds {f'a {kind}' if kind else 'no autoencoder'}",
            expected="config.json of an AutoencoderKL (diffusers) and its weights",
        )
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"{weights} does not exist",
            expected="weights as safetensors (pickled ones are not read)",
            remedy="save the model with diffusers' `save_pretrained`, which writes safetensors",
        )
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]  # 4 s: only when one is needed

    try:
        network = AutoencoderKL.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers, safetensors and torch raise many kinds for a file that does not fit
        raise UserError(
            f"the autoencoder in {folder} does not load: {_first_line(error)}",
            expected="config.json and weights that belong together, complete",
            remedy="download it again",
        ) from error
    assert isinstance(network, AutoencoderKL)
    shape = network.config
    spec = AutoencoderSpec(
        id=name if revision else str(folder.absolute()),
        revision=revision,
        sha256=sha256(weights),
        factor=2 ** (len(shape["block_out_channels"]) - 1),
        channels=shape["latent_channels"],
    )
    if shape["in_channels"] != 3 or shape["out_channels"] != 3:
        raise UserError(f"the autoencoder {name} has {shape['in_channels']} input channels", expected="3, RGB")
    network.requires_grad_(False).eval()
    network.to(device)  # pyright: ignore[reportArgumentType]
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return DiffusersAutoencoder(network, spec=spec, device=device)
