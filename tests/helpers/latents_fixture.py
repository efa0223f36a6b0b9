"""A small folder of latents to train on: coloured squares, four classes, encoded as `mpdit encode-latents` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mpdit_core.encoding import EncodeOptions, encode_latents
from mpdit_core.size import Size

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40), "white": (240, 240, 240)}


def make_images(folder: Path, *, per_class: int = 8, side: int = 16) -> Path:
    """`folder/<colour>/<n>.png`: a square of the colour at a place that depends on n, on grey."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for n in range(per_class):
            pixels = np.full((side, side, 3), 128, dtype=np.uint8)
            row, column = n % 4 * side // 8, n // 4 * side // 4
            pixels[row : row + side // 2, column : column + side // 2] = colour
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def make_latents(root: Path, *, per_class: int = 8, teacher: str | None = None) -> Path:
    """Encodes such images at 16 pixels in grey, with features of a teacher; returns the folder of latents."""
    images, out = make_images(root / "images", per_class=per_class), root / "latents" / "squares-16"
    options = EncodeOptions(
        source=str(images),
        resolution=Size.square(16),
        autoencoder="pixels-gray",
        flip=False,
        out=out,
        device="cpu",
        teacher=teacher,
    )
    encode_latents(options)
    return out
