"""From the bytes of a file to the uint8 array that an autoencoder encodes: decoding, orientation, colour, crop.

The crop is that of the guided-diffusion (ADM) data loader, which DiT, SiT and MPDiT share: the image is halved with a
box filter while both sides are at least twice the target's, resized bicubically until it just covers the target, and
its centre is cut out.

To read one more format: its Pillow name in `FORMATS`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from mpdit_core.data import deep_pixels
from mpdit_core.errors import UserError
from mpdit_core.size import Size

FORMATS = (
    "PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "PCX", "SGI", "ICO", "QOI",
)  # fmt: skip
"""The formats that are read. Pillow's other formats start other programs (EPS) or hold no pictures (HDF5, MPEG)."""

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Larger images are refused before they are decoded or scaled: a file of a few bytes can state a huge size."""

MAX_TEXT_BYTES = 64 * 2**20  # of text in a PNG, which is ignored; Pillow's own limit is 1 MiB

Mode: TypeAlias = Literal["L", "RGB", "RGBA"]
"""Pillow's name for what a picture is converted to: grey, RGB, or RGB with transparency. One channel per letter."""

LUMINANCE = np.array((0.299, 0.587, 0.114), dtype=np.float32)  # ITU-R BT.601, as in Pillow's conversion to grey

ORIENTATION = 0x0112  # tag of EXIF
UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes a picture upright, by its EXIF orientation; for 1 and unknown numbers there is none."""


class FaultyImageError(UserError):
    """One image cannot be used; `what` is the reason. With `on_error="skip"` encoding continues without it."""

    def __init__(self, reason: str):
        super().__init__(reason, code="faulty-image")

    def __reduce__(self):
        return (FaultyImageError, (self.what,))


@cache
def suffixes() -> frozenset[str]:
    """The extensions of `FORMATS`, in lower case, with the dot. Files with them are images in every command."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


def open_image(data: bytes) -> Image.Image:
    """The decoded picture in `data`, any mode and size, orientation not yet applied.

    Raises:
        FaultyImageError: not an image of `FORMATS`, damaged, cut short, or larger than `MAX_PIXELS`.
    """
    if not data:
        raise FaultyImageError("the file is empty")
    Image.init()
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
    with _faulty_if_it_fails():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _require_size(*image.size)
        return deep_pixels.load(image, data)


def prepare(image: Image.Image, resolution: Size, mode: Mode = "RGB") -> np.ndarray:
    """The centre of `image` in H × W = `resolution` pixels, upright: uint8 [H, W, channels of `mode`].

    Only mode RGBA keeps transparency; otherwise it is laid on white. Grey is the luminance of the colours.

    Raises:
        FaultyImageError: the picture cannot be converted, or is so long and thin that scaling it would be huge.
    """
    with _faulty_if_it_fails():
        picture = upright(to_rgba(image) if mode == "RGBA" else to_rgb(image), image)
    pixels = centre_crop(picture, resolution)
    return pixels if mode != "L" else np.rint((pixels * LUMINANCE).sum(axis=-1, keepdims=True)).astype(np.uint8)


def centre_crop(image: Image.Image, resolution: Size) -> np.ndarray:
    """ADM's crop of an RGB or RGBA image, for rectangles too: uint8 [H, W, 3 or 4] with H × W = `resolution`."""
    while image.height >= 2 * resolution.height and image.width >= 2 * resolution.width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(resolution.height / image.height, resolution.width / image.width)
    size = (round(image.width * scale), round(image.height * scale))
    _require_size(*size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - resolution.width) // 2, (image.height - resolution.height) // 2
    return np.asarray(image.crop((left, top, left + resolution.width, top + resolution.height)))


def upright(picture: Image.Image, original: Image.Image) -> Image.Image:
    """`picture`, turned as the EXIF data of `original` state; other tags are ignored, even damaged ones."""
    try:
        value = original.getexif().get(ORIENTATION)
    except Exception:  # Pillow's reader of EXIF raises many kinds for damaged data; the picture is good
        return picture
    number = value[0] if isinstance(value, bytes | tuple) and value else value
    turn = UPRIGHT.get(number) if isinstance(number, int) else None
    return picture if turn is None else picture.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB. Transparency is laid on white; values of more than 8 bits are scaled, not clipped.

    Raises:
        ValueError: the picture cannot be converted, or the scale of its values is not known.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if deep_pixels.is_deep_grey(image):
        return deep_pixels.grey_to_8_bits(image).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        exactly = ImageCms.Flags.NOOPTIMIZE  # the default tables are coarse for dark colours
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB", flags=exactly)
        assert converted is not None
        return converted
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def to_rgba(image: Image.Image) -> Image.Image:
    """`image` in mode RGBA, opaque if it has no transparency. Raises `ValueError` as `to_rgb`."""
    if image.has_transparency_data and not deep_pixels.is_deep_grey(image):
        return image.convert("RGBA")
    return to_rgb(image).convert("RGBA")


@contextmanager
def _faulty_if_it_fails() -> Iterator[None]:
    """Every error in the body is a fault of the image."""
    try:
        yield
    except FaultyImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise FaultyImageError(f"not an image in a format that is read here ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's readers raise many kinds: OSError, SyntaxError, struct.error, …
        raise FaultyImageError(str(error).strip() or type(error).__name__) from error


def _require_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise FaultyImageError(f"{width} × {height} pixels")
    if width * height > MAX_PIXELS:
        raise FaultyImageError(f"{width} × {height} pixels are more than {MAX_PIXELS:,} (a decompression bomb?)")
