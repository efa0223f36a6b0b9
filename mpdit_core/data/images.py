"""From the bytes of a file to the square uint8 array that an autoencoder encodes: decoding, orientation, colour, crop.

The crop is that of the guided-diffusion (ADM) data loader, which DiT, SiT and MPDiT share: halve with a box filter
while the short side is at least twice the target, resize bicubically until it is the target, cut out the centre.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps

from mpdit_core.errors import UserError

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Larger images are refused, before decoding and after scaling: files of a few bytes can claim to be huge."""


class FaultyImageError(UserError):
    """One image that cannot be used; `what` is the reason. With `on_error="skip"` encoding continues without it."""

    def __init__(self, reason: str):
        super().__init__(reason, code="faulty-image")

    def __reduce__(self):
        return (FaultyImageError, (self.what,))


def open_image(data: bytes) -> Image.Image:
    """The decoded picture in `data`, any mode and size, orientation not yet applied.

    Raises:
        FaultyImageError: not an image, damaged, cut short, or larger than `MAX_PIXELS`.
    """
    if not data:
        raise FaultyImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        _check_size(*image.size)
        image.load()
    except FaultyImageError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds: OSError, SyntaxError, struct.error, …
        raise FaultyImageError(_reason(error)) from error
    return image


def prepare(image: Image.Image, resolution: int) -> np.ndarray:
    """The centre of `image` as `resolution` × `resolution` RGB pixels, upright: uint8 [H, W, 3].

    Raises:
        FaultyImageError: the picture cannot be converted, or is so long and thin that scaling it would be huge.
    """
    try:
        image = to_rgb(ImageOps.exif_transpose(image))
    except FaultyImageError:
        raise
    except Exception as error:
        raise FaultyImageError(_reason(error)) from error
    return centre_crop(image, resolution)


def centre_crop(image: Image.Image, resolution: int) -> np.ndarray:
    """ADM's crop of an RGB image: uint8 [H, W, 3] with H = W = `resolution`."""
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    _check_size(*size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return np.asarray(image.crop((left, top, left + resolution, top + resolution)))


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB. Transparency is laid on white; 16-bit and float values are scaled to 8 bits, not clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_to_rgb(image)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Grey images of more than 8 bits. Integers are on the 16-bit scale; floats on 0..1, or 0..255 if they exceed 1."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 255):  # also refuses NaN
            raise FaultyImageError(
                f"floating-point pixels between {low:g} and {high:g}; 0 to 1 or 0 to 255 are understood"
            )
        scaled = values * 255 if high <= 1 else values
    else:
        if values.min() < 0 or values.max() > 65535:
            raise FaultyImageError(
                f"32-bit pixels between {values.min():g} and {values.max():g}; 0 to 65535 is understood"
            )
        scaled = values / 257
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise FaultyImageError(f"{width} × {height} pixels")
    if width * height > MAX_PIXELS:
        raise FaultyImageError(f"{width} × {height} pixels are more than {MAX_PIXELS:,} (a decompression bomb?)")


def _reason(error: Exception) -> str:
    text = str(error).replace("<_io.BytesIO object at ", "<").split(" <0x")[0].strip()
    if isinstance(error, Image.UnidentifiedImageError):
        text = "not an image in any format Pillow reads"
    return text or type(error).__name__
