"""What every autoencoder offers, and the one place that knows the range of pixels an encoder takes.

Shapes: images uint8 [B, 3, H, W]; raw_latents float32 [B, C, h, w] with h = H / factor; stored [B, copies·C, h, w] is
what a shard keeps for each image (`manifest.FORMS`): float32 moments, float32 latents, or uint8 pixel values.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.errors import UserError
from mpdit_core.runtime import precision


class Autoencoder:
    """The contract. `precision` and `decode_precision` may be set before encoding and decoding."""

    spec: AutoencoderSpec
    device: torch.device  # that decodes
    parameters: int = 0  # of its network; one of few computes in float32 unless told otherwise
    precision: precision.Name = "float32"
    decode_precision: precision.Name = "float32"

    @property
    def encode_device(self) -> torch.device:
        """The device that encodes."""
        return self.device

    def encode(self, images: Tensor) -> Tensor:
        """What is stored for each of `images` uint8 [B, 3, H, W] on any device: [B, copies·C, h, w] on
        `encode_device`."""
        raise NotImplementedError

    def decode(self, raw_latents: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] on `device` from `raw_latents [B, C, h, w]`."""
        raise NotImplementedError

    def check_resolution(self, resolution: int) -> None:
        """Raises `UserError` when `resolution` is no multiple of the autoencoder's factor."""
        factor = self.spec.factor
        if resolution % factor:
            near = max(factor, round(resolution / factor) * factor)
            raise UserError(
                f"resolution {resolution} does not fit the autoencoder {self.spec.id}",
                code="resolution-does-not-fit",
                expected=f"a multiple of {factor}",
                remedy=f"--resolution {near}",
            )


def read_stored(stored: Tensor, stores: Literal["mean+std", "mean", "uint8"]) -> tuple[Tensor, Tensor | None]:
    """(mean [B, C, h, w], standard deviation [B, C, h, w] or None) in float32, from what is stored for each image."""
    if stores == "uint8":
        return to_range(stored), None
    if stores == "mean":
        return stored.float(), None
    mean, std = stored.float().chunk(2, dim=1)
    return mean, std


def to_range(images: Tensor) -> Tensor:
    """uint8 pixels as float32 on [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_pixels(values: Tensor) -> Tensor:
    """The nearest uint8 pixels to `values` on [-1, 1], as ADM's evaluation rounds: clamp(127.5·x + 128), truncated."""
    return (values.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
