"""An autoencoder that is ready: a plugin on its device, its precision, and its spec, which latents and models record.

Shapes: images uint8 [B, K, H, W] with K channels, mostly 3 (RGB); raw_latents float32 [B, C, h, w] with h = H / factor;
stored [B, copies·C, h, w] is what a shard keeps for each image (`manifest.FORMS`): float32 moments, float32 latents, or
uint8 pixel values.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mpdit_core.config import ComputeType
from mpdit_core.data.autoencoders.pixel_range import to_range
from mpdit_core.data.images import Mode
from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.errors import UserError
from mpdit_core.plugins import broken, plugin_errors
from mpdit_core.protocols import Autoencoder
from mpdit_core.runtime.precision import computing_in
from mpdit_core.size import Size

DECODED_AT_ONCE = 2**21  # pixels: 32 images of 256 px, for which Stable Diffusion's decoder takes about 7 GiB
DECODED_AT_ONCE_ON_CPU = 2**18  # 4 such images: 0.9 GiB; larger batches are not faster


class LoadedAutoencoder:
    """A loaded autoencoder. `precision` and `decode_precision` may be set before encoding and decoding."""

    precision: ComputeType = "float32"
    decode_precision: ComputeType = "float32"

    def __init__(self, plugin: Autoencoder, *, spec: AutoencoderSpec, device: torch.device):
        self.plugin, self.spec, self.device = plugin, spec, device

    @property
    def parameters(self) -> int:
        """Number of parameters of its networks; 0 where it has none."""
        networks = [value for value in vars(self.plugin).values() if isinstance(value, torch.nn.Module)]
        return sum(parameter.numel() for network in networks for parameter in network.parameters())

    @property
    def mode(self) -> Mode:
        """The mode of its images, as Pillow names it."""
        return self.spec.mode

    @property
    def encode_device(self) -> torch.device:
        """The CPU for pixel values: nothing is computed, so copying them to a GPU would only take time."""
        return torch.device("cpu") if self.spec.stores == "uint8" else self.device

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """What is stored for each of `images` uint8 [B, K, H, W] on any device: [B, copies·C, h, w] on
        `encode_device`."""
        images = images.to(self.encode_device, non_blocking=True)
        with computing_in(self.precision, self.encode_device), plugin_errors(self.plugin, "in encode"):
            stored = self.plugin.encode(images)
        sides = [side // self.spec.factor for side in images.shape[-2:]]
        dtype = torch.uint8 if self.spec.stores == "uint8" else torch.float32
        self._require(stored, [len(images), self.spec.form.copies * self.spec.channels, *sides], dtype, "in encode")
        return stored

    @torch.inference_mode()
    def decode(self, raw_latents: Tensor) -> Tensor:
        """Images uint8 [B, K, H, W] on `device` from `raw_latents [B, C, h, w]`, decoded in parts to save memory."""
        height, width = (side * self.spec.factor for side in raw_latents.shape[-2:])
        pixels = DECODED_AT_ONCE_ON_CPU if self.device.type == "cpu" else DECODED_AT_ONCE
        parts = []
        for part in raw_latents.split(max(1, pixels // (height * width))):
            with computing_in(self.decode_precision, self.device), plugin_errors(self.plugin, "in decode"):
                images = self.plugin.decode(part.to(self.device, torch.float32))
            self._require(images, [len(part), len(self.mode), height, width], torch.uint8, "in decode")
            parts.append(images)
        return torch.cat(parts)

    def require_resolution(self, resolution: Size) -> None:
        """Raises `UserError` (`resolution-does-not-fit`) for a size in pixels that the autoencoder does not take."""
        factor, only = self.spec.factor, self.spec.resolution
        if not resolution.is_multiple(factor) or (only and resolution != Size.square(only)):
            near = only or Size(*(max(factor, round(side / factor) * factor) for side in resolution))
            raise UserError(
                f"resolution {resolution} does not fit the autoencoder {self.spec.id}",
                code="resolution-does-not-fit",
                expected=f"{only}" if only else f"a multiple of {factor}",
                remedy=f"--resolution {near}",
            )

    def _require(self, made: Tensor, shape: list[int], dtype: torch.dtype, doing: str) -> None:
        if list(made.shape) != shape or made.dtype != dtype:
            found = f"it returns {made.dtype} {list(made.shape)}, not {dtype} {shape}"
            raise broken(self.plugin, doing, found)


def read_stored(stored: Tensor, stores: Literal["mean+std", "mean", "uint8"]) -> tuple[Tensor, Tensor | None]:
    """(mean [B, C, h, w], standard deviation [B, C, h, w] or None) in float32, from what is stored for each image."""
    if stores == "uint8":
        return to_range(stored), None
    if stores == "mean":
        return stored.float(), None
    mean, std = stored.float().chunk(2, dim=1)
    return mean, std
