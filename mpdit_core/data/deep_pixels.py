"""Converts pictures with other than 8 bits per channel to 8 bits: values are scaled and rounded, never clipped.

Pillow keeps only the high byte of 16-bit colours and gives no scale for integers and floats; `_on_unit_scale` has the
rules. Where the scale is not known, `ValueError` says what to do.
"""

from __future__ import annotations

import io
import sys

import numpy as np
from PIL import Image, ImageFile

# Endings of Pillow's raw modes for 16-bit numbers: the one that reads the high byte → the one that reads the low byte.
LOW_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}

WIDTH, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF: bits per sample, what 0 means, kind of number
COUNTS_FROM_WHITE, SIGNED = 0, 2  # values of the last two


def load(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """`image`, opened from `data`, with its pixels: 16-bit colours are rounded to 8 bits, deep grey stays as it is.

    Raises:
        ValueError: the scale of the values is not known.
    """
    args = image.tile[0][3] if image.tile else ""
    raw = args if isinstance(args, str) else str(args[0]) if args else ""  # how the file stores pixels, such as `L;4`
    if image.format in ("PNG", "TIFF") and raw[:-4] in ("RGB", "RGBA", "RGBX", "LA") and raw[-4:] in LOW_BYTE:
        return _read_deep_colour(image.mode, raw, data)
    if image.mode == "L" and _tag(image, SAMPLE_FORMAT, 1) == SIGNED:  # Pillow would read them as unsigned
        raise ValueError("integer pixels with a sign, whose scale is not known: convert them to unsigned 8 or 16 bits")
    if raw in ("L;2", "L;4") and "transparency" in image.info:  # Pillow scales the pixels, but not this value
        image.info["transparency"] *= 255 // (2 ** int(raw[-1]) - 1)
    image.load()
    return image


def _read_deep_colour(mode: str, raw: str, data: bytes) -> Image.Image:
    """The picture in `data`, which is stored as `raw`, with 16-bit numbers rounded to 8."""
    if raw == "LA;16B":  # read as four bytes per pixel: grey high, grey low, alpha high, alpha low
        loaded, four = _read_as(data, "RGBA", "RGBA")
        values = four[..., 0::2].astype(np.uint16) * 256 + four[..., 1::2]
    else:
        loaded, high = _read_as(data, mode, raw)
        _, low = _read_as(data, mode, raw[:-4] + LOW_BYTE[raw[-4:]])
        values = high.astype(np.uint16) * 256 + low
    rounded = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    clear = loaded.info.pop("transparency", None)
    if isinstance(clear, tuple):
        opaque = (values != np.array(clear)).any(axis=-1)
        rounded.putalpha(Image.fromarray((opaque * 255).astype(np.uint8)))
    rounded.info = loaded.info
    return rounded


def _read_as(data: bytes, mode: str, raw: str) -> tuple[ImageFile.ImageFile, np.ndarray]:
    """(the picture in `data` decoded as if its pixels were stored as `raw`, its values uint8 [H, W, channels])."""
    image = Image.open(io.BytesIO(data), formats=("PNG", "TIFF"))
    image._mode = mode
    for number, tile in enumerate(image.tile):
        image.tile[number] = tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
    image.load()
    return image, np.asarray(image)


def is_deep_grey(image: Image.Image) -> bool:
    """Whether the values of `image` are integers or floats of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Deep grey `image` in mode L, with white where its value is the transparent one.

    Raises:
        ValueError: the scale of the values is not known.
    """
    values = np.asarray(image).astype(np.float64)
    pixels = np.rint(255 * _on_unit_scale(image, values)).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        pixels = np.where(values == clear, np.uint8(255), pixels)
    return Image.fromarray(pixels)


def _on_unit_scale(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """`values` on 0 (black) to 1 (white).

    16-bit integers are on 0..65535, or on the range that a TIFF states (12 bits: 0..4095). Floats within 0..1 that have
    fractions are on 0..1, all others on 0..255. The scale of integers of 32 bits or with a sign is not known.
    """
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 255):  # also refuses NaN
            raise ValueError(
                f"floating-point pixels between {low:g} and {high:g}; 0 to 1 or 0 to 255 are supported: convert them"
            )
        values = values if high <= 1 and (values % 1).any() else values / 255
    elif image.mode == "I" and image.format == "TIFF":
        raise ValueError(
            "integer pixels of 32 bits or with a sign, whose scale is not known: convert them to unsigned 8 or 16 bits"
        )
    else:
        top = 2 ** _tag(image, WIDTH, 16) - 1 if image.format == "TIFF" else 65535
        if values.max() > top:
            raise ValueError(f"pixels up to {values.max():.0f}, whose scale is not known: convert them to 8 bits")
        values = values % (top + 1) / top  # Pillow reads a TIFF that counts from white as negative numbers
    return 1 - values if _tag(image, PHOTOMETRIC, 1) == COUNTS_FROM_WHITE else values


def _tag(image: Image.Image, number: int, default: int) -> int:
    """The first value of a TIFF tag; `default` where it is missing, or the file is no TIFF."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)
