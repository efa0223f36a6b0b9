"""The features of mpdit-efficientnet at 112 pixels: faster, and still larger than pictures of 32 pixels."""

from dataclasses import dataclass
from typing import ClassVar

from mpdit_efficientnet import EfficientNet


@dataclass
class SmallEfficientNet(EfficientNet):
    name: ClassVar[str] = "efficientnet-112"

    side: int = 112
