"""Features of pictures of digits: `digits`, from a small classifier, and `digits-pixels`, the pixels themselves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mpdit_core.api import Features

WEIGHTS = Path(__file__).with_name("classifier.safetensors")
SIDE = 16


class DigitNet(nn.Module):
    """Three convolutions and two linear layers; `[B, 1, 16, 16]` in 0..1 → features `[B, 64]`, logits `[B, 10]`."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.features = nn.Linear(32 * 4 * 4, 64)
        self.logits = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # [B, 16, 8, 8]
        x = F.max_pool2d(F.relu(self.conv3(F.relu(self.conv2(x)))), 2)  # [B, 32, 4, 4]
        features = F.relu(self.features(x.flatten(1)))
        return features, self.logits(features)


def gray(images: Tensor) -> Tensor:
    """Pictures `[B, 3, H, W]` uint8 as grey values `[B, 1, H, W]` in 0..1."""
    return images.float().mean(dim=1, keepdim=True) / 255


@dataclass
class DigitFeatures:
    """A small classifier of real digits: `pool` [B, 64] is its last hidden layer, `logits` [B, 10] its output.

    Trained by `python -m mpdit_digits.fit`. The weights are in the package, so distances are comparable everywhere.
    """

    name: ClassVar[str] = "digits"

    def load(self, device: torch.device) -> None:
        self.network = DigitNet().eval().requires_grad_(False)
        self.network.load_state_dict(load_file(WEIGHTS))
        self.network.to(device)

    def __call__(self, images: Tensor) -> Features:
        small = F.interpolate(gray(images), size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            features, logits = self.network(small)
        return Features(pool=features, logits=logits)

    def fingerprint(self) -> str:
        return hashlib.sha256(b"gray bilinear 16" + WEIGHTS.read_bytes()).hexdigest()


@dataclass
class PixelFeatures:
    """The grey values themselves. `pool` [B, H·W], in 0..1, row by row; only for small pictures such as the digits."""

    name: ClassVar[str] = "digits-pixels"

    def load(self, device: torch.device) -> None:
        pass

    def __call__(self, images: Tensor) -> Features:
        return Features(pool=gray(images).flatten(1))

    def fingerprint(self) -> str:
        return "gray 0..1, version 1"
