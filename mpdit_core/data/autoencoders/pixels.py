"""`pixels` and `pixels-gray`: no network; the latents are the pixels on [-1, 1], and are stored as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mpdit_core.data.autoencoders.pixel_range import to_pixels
from mpdit_core.protocols import option


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
