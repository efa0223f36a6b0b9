"""`pixels` and `pixels-gray`: no network; the latents are the pixels on [-1, 1], and are stored as they are.

And the one place that knows how pixels become numbers on [-1, 1], and numbers pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grey


@dataclass
class Pixels:
    """The pixels themselves, in colour."""

    channels: ClassVar[int] = 3
    factor: ClassVar[int] = 1
    stores: ClassVar[Literal["uint8"]] = "uint8"
    flip_equivariant: ClassVar[bool] = True

    def load(self, device: torch.device) -> None:
        pass

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, raw_latents: Tensor) -> Tensor:
        return to_pixels(raw_latents).expand(-1, 3, -1, -1)

    def fingerprint(self) -> str:
        return f"{self.channels} channels of pixels"


@dataclass
class PixelsGray(Pixels):
    """The luminance of the pixels, one channel."""

    channels: ClassVar[int] = 1

    def encode(self, images: Tensor) -> Tensor:
        weights = torch.tensor(LUMINANCE, device=images.device).view(1, 3, 1, 1)
        return (images.contiguous().float() * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)


def to_range(images: Tensor) -> Tensor:
    """uint8 pixels as float32 on [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_pixels(values: Tensor) -> Tensor:
    """The nearest uint8 pixels to `values` on [-1, 1], as ADM's evaluation rounds: clamp(127.5·x + 128), truncated."""
    return (values.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
