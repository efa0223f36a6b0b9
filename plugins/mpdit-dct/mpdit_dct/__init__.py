"""The autoencoder `dct`: low frequencies of luminance and chrominance, for each block of pixels. It has no weights.

Shapes: B images of H × W pixels, F = factor, h = H / F; K coefficients of luminance, k of each of two chrominances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mpdit_core.api import option, to_pixels, to_range

YCBCR = (
    (0.299, 0.587, 0.114),  # luminance: ITU-R BT.601, full range, as in JFIF
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


@dataclass
class DCT:
    """The orthonormal cosine transform of blocks of pixels, which keeps the low frequencies of each block.

    Channels: the coefficients of luminance by rising frequency, then of Cb, then of Cr. Each chrominance has an eighth
    of all channels, which is about the best share for photos: eyes see less detail in chrominance.
    """

    stores: ClassVar[Literal["mean"]] = "mean"

    factor: Literal[4, 8] = option(4, "side of a block in pixels: 4 or 8")
    channels: int = option(16, "number of coefficients kept per block, at most 3 · factor²", minimum=3, maximum=192)

    def __post_init__(self) -> None:
        if self.channels > 3 * self.factor**2:
            raise ValueError(f"channels = {self.channels}: an RGB block has {3 * self.factor**2} coefficients")

    def load(self, device: torch.device) -> None:
        beyond = math.ceil((self.channels - self.factor**2) / 2)  # more channels than luminance has coefficients
        chrominance = max(1, self.channels // 8, beyond)
        kept = (self.channels - 2 * chrominance, chrominance, chrominance)
        waves = _waves(self.factor).to(device)
        self.colours = torch.tensor(YCBCR, device=device)  # [3, 3]
        self.filters = [waves[:count] for count in kept]

    def encode(self, images: Tensor) -> Tensor:
        ycbcr = torch.einsum("dc,bchw->bdhw", self.colours, to_range(images))
        planes = ycbcr.split(1, dim=1)
        parts = [F.conv2d(plane, waves, stride=self.factor) for plane, waves in zip(planes, self.filters, strict=True)]
        return torch.cat(parts, dim=1)  # [B, K + 2k, h, w]

    def decode(self, raw_latents: Tensor) -> Tensor:
        parts = raw_latents.split([len(waves) for waves in self.filters], dim=1)
        planes = [
            F.conv_transpose2d(part, waves, stride=self.factor) for part, waves in zip(parts, self.filters, strict=True)
        ]
        ycbcr = torch.cat(planes, dim=1)  # [B, 3, H, W]
        return to_pixels(torch.einsum("dc,bchw->bdhw", torch.linalg.inv(self.colours), ycbcr))

    def fingerprint(self) -> str:
        return f"dct 1 {self.factor} {self.channels}"


def _waves(side: int) -> Tensor:
    """The basis of the DCT-II of a block, orthonormal, by rising frequency: [side², 1, side, side]."""
    u, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    basis = torch.cos(math.pi * (2 * x + 1) * u / (2 * side)) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    frequencies = [(i, j) for i in range(side) for j in range(side)]
    frequencies.sort(key=lambda pair: (sum(pair), max(pair), pair))
    return torch.stack([torch.outer(basis[i], basis[j]) for i, j in frequencies])[:, None]
