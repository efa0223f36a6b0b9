"""`pixels` and `pixels-gray`: no network; the latents are the pixels on [-1, 1], and are stored as they are.

Also the conversions between pixels and numbers on [-1, 1], and from any mode to RGB, for all autoencoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mpdit_core.api import option


@dataclass
class Pixels:
    """The pixels themselves: colours, unless `mode` is another one."""

    mode: Literal["L", "RGB", "RGBA"] = option("RGB", "L: grey, RGB: colours, RGBA: colours with transparency")

    factor: ClassVar[int] = 1
    stores: ClassVar[Literal["uint8"]] = "uint8"
    flip_equivariant: ClassVar[bool] = True

    @property
    def channels(self) -> int:
        return len(self.mode)

    def load(self, device: torch.device) -> None:
        pass

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, raw_latents: Tensor) -> Tensor:
        return to_pixels(raw_latents)

    def fingerprint(self) -> str:
        return f"{self.channels} channels of pixels"


@dataclass
class PixelsGray(Pixels):
    """`pixels` with mode L, under its own name."""

    mode: Literal["L"] = option("L", "L: grey")  # pyright: ignore[reportIncompatibleVariableOverride]


def to_range(images: Tensor) -> Tensor:
    """uint8 pixels as float32 on [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_pixels(values: Tensor) -> Tensor:
    """The nearest uint8 pixels to `values` on [-1, 1], as ADM's evaluation rounds: clamp(127.5·x + 128), truncated."""
    return (values.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def as_rgb(images: Tensor) -> Tensor:
    """uint8 images [n, 1, 3 or 4, H, W] as RGB [n, 3, H, W]: grey in all three channels, transparency laid on white."""
    if images.shape[1] != 4:
        return images.expand(-1, 3, -1, -1)
    colours, alpha = images[:, :3].int(), images[:, 3:].int()
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)
