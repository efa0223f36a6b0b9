"""The data set `digits`: 1,797 scans of handwritten digits that come with scikit-learn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from PIL import Image

from mpdit_core.api import Item, option


@dataclass
class Digits:
    """Real scans of handwritten digits, the test half of UCI's optical recognition: 8×8 grey values 0..16, ten classes.

    The scans are enlarged by Lanczos interpolation and scaled to 0..255: smooth strokes, white on black.
    """

    autoencoder: ClassVar[str] = "pixels-gray"
    resolution: ClassVar[int] = 16

    side: int = option(16, "side of the pictures in pixels", minimum=8, maximum=1024)

    @cached_property
    def _scans(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        scans, labels = load_digits(return_X_y=True)
        return np.asarray(scans, np.float32).reshape(-1, 8, 8), np.asarray(labels, np.int64)  # [1797, 8, 8], [1797]

    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def items(self) -> list[Item]:
        return [Item(f"digits/{index:04d}", int(label)) for index, label in enumerate(self._scans[1])]

    def image(self, index: int) -> Image.Image:
        scan = Image.fromarray(self._scans[0][index] * (255 / 16))  # mode F: enlarged before it is rounded
        enlarged = np.asarray(scan.resize((self.side, self.side), Image.Resampling.LANCZOS))
        return Image.fromarray(enlarged.round().clip(0, 255).astype(np.uint8))

    def fingerprint(self) -> str:
        scans, labels = self._scans
        return hashlib.sha256(b"lanczos" + str(self.side).encode() + scans.tobytes() + labels.tobytes()).hexdigest()
