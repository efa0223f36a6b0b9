"""`pixels` and `pixels-gray`: no network; the latents are the pixels on [-1, 1], and are stored as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from mpdit_core.data.autoencoders.base import Autoencoder, to_pixels
from mpdit_core.data.manifest import AutoencoderSpec

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grey


class PixelAutoencoder(Autoencoder):
    """The identity. `gray`: one channel of luminance."""

    def __init__(self, *, gray: bool, device: torch.device):
        self.spec = AutoencoderSpec(
            id="pixels-gray" if gray else "pixels",
            factor=1,
            channels=1 if gray else 3,
            stores="uint8",
            flip_equivariant=True,
        )
        self.gray, self.device = gray, device

    @property
    def encode_device(self) -> torch.device:
        """The CPU always: nothing is computed that would be worth the way to a GPU."""
        return torch.device("cpu")

    def encode(self, images: Tensor) -> Tensor:
        if not self.gray:
            return images
        weights = torch.tensor(LUMINANCE, device=images.device).view(1, 3, 1, 1)
        return (images.contiguous().float() * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)

    def decode(self, raw_latents: Tensor) -> Tensor:
        return to_pixels(raw_latents.to(self.device)).expand(-1, 3, -1, -1)
