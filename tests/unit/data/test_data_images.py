"""Image preparation: ADM's crop to the byte, and every kind of picture that Pillow opens."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from data_helpers import photo
from PIL import Image

from mpdit_core.data.images import MAX_PIXELS, FaultyImageError, centre_crop, open_image, prepare
from mpdit_core.size import Size


def adm_rule(image: Image.Image, side: int) -> np.ndarray:
    """The rule as the spec words it, written down a second time: box halvings, bicubic, centre."""
    width, height = image.size
    while min(width, height) >= 2 * side:
        width, height = width // 2, height // 2
        image = image.resize((width, height), resample=Image.Resampling.BOX)
    scale = side / min(width, height)
    array = np.array(image.resize((round(width * scale), round(height * scale)), resample=Image.Resampling.BICUBIC))
    y, x = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[y : y + side, x : x + side]


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (64, 64), (65, 64), (128, 128), (31, 200), (257, 129), (1000, 130), (3, 5), (1, 1)]
)
def test_crop_is_adms(size: tuple[int, int]):
    image = photo(1, size)
    assert np.array_equal(centre_crop(image, Size.square(64)), adm_rule(image, 64))


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (72, 48), (48, 72), (144, 96), (144, 95), (143, 96), (31, 200), (200, 31), (1, 1)]
)
@pytest.mark.parametrize("target", [Size(48, 72), Size(72, 48), Size(20, 70)])
def test_crop_to_a_rectangle(size: tuple[int, int], target: Size):
    """The rule with factors of enlargement in place of lengths: both sides must be covered."""
    image, (height, width) = photo(1, size), target
    while min(image.height / height, image.width / width) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    needed = max(Fraction(height, image.height), Fraction(width, image.width))
    image = image.resize((round(image.width * needed), round(image.height * needed)), Image.Resampling.BICUBIC)
    assert image.height == height or image.width == width
    top, left = (image.height - height) // 2, (image.width - width) // 2
    assert np.array_equal(centre_crop(photo(1, size), target), np.array(image)[top : top + height, left : left + width])


def test_golden_array():
    """Fixed numbers, so that a changed resampler of Pillow is noticed."""
    y, x = np.mgrid[0:75, 0:100]
    ramp = np.stack([2 * x, 3 * y, x + y], axis=-1).astype(np.uint8)
    got = prepare(Image.fromarray(ramp), Size.square(4))
    assert got.shape == (4, 4, 3)
    assert got[:, :, 0].tolist() == GOLDEN_RED
    assert got[:, :, 1].tolist() == GOLDEN_GREEN


GOLDEN_RED = [[47, 81, 119, 151], [47, 81, 119, 151], [47, 81, 119, 151], [47, 81, 119, 151]]
GOLDEN_GREEN = [[23, 23, 23, 23], [84, 84, 84, 84], [152, 152, 152, 152], [200, 200, 200, 200]]


def test_exif_rotation():
    image, exif = photo(2, (40, 24)), Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270°
    data = io.BytesIO()
    image.save(data, "PNG", exif=exif)
    upright = np.rot90(np.asarray(image), k=-1)
    assert np.array_equal(prepare(open_image(data.getvalue()), Size.square(24)), adm_rule(Image.fromarray(upright), 24))


def saved(image: Image.Image, kind: str) -> Image.Image:
    data = io.BytesIO()
    image.save(data, kind)
    return open_image(data.getvalue())


def test_modes():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    as_rgb = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(prepare(saved(Image.fromarray(grey), "PNG"), Size.square(16)), as_rgb)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(prepare(saved(deep, "PNG"), Size.square(16)), as_rgb), "16 bits are scaled, not clipped"
    floats = Image.fromarray(grey.astype(np.float32) / 255)
    assert np.array_equal(prepare(saved(floats, "TIFF"), Size.square(16)), as_rgb)
    palette = photo(3, (16, 16)).quantize(16)
    assert np.array_equal(prepare(saved(palette, "GIF"), Size.square(16)), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(grey > 99)
    assert set(np.unique(prepare(saved(bits, "PNG"), Size.square(16)))) == {0, 255}
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red = prepare(saved(cmyk, "JPEG"), Size.square(16))[8, 8]
    assert red[0] > 240
    assert red[1:].max() < 20
    assert prepare(Image.new("LAB", (16, 16), (128, 128, 128)), Size.square(16)).shape == (16, 16, 3)


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))  # hidden red
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    got = prepare(saved(image, "PNG"), Size.square(8))
    assert got[0, 0].tolist() == [0, 0, 255]
    assert got[0, 7].tolist() == [255, 255, 255]
    gif = Image.new("P", (8, 8), 0)
    gif.putpalette([9, 9, 9, 50, 60, 70])
    gif.info["transparency"] = 0
    assert prepare(gif, Size.square(8))[0, 0].tolist() == [255, 255, 255]
    half = Image.new("LA", (8, 8), (0, 128))
    assert abs(int(prepare(half, Size.square(8))[0, 0, 0]) - 127) <= 1


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    body = b"IDAT" + zlib.compress(b"\0")
    return start + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def test_faulty_images():
    jpeg = io.BytesIO()
    photo(4, (64, 64)).save(jpeg, "JPEG")
    bad = {
        b"": "empty",
        b"not an image": "not an image",
        jpeg.getvalue()[:900]: "truncated",
        png_claiming(100_000, 100_000): "pixels",
    }
    for data, word in bad.items():
        with pytest.raises(FaultyImageError, match=word):
            open_image(data)
    with pytest.raises(FaultyImageError, match="bomb"):  # thin enough to explode when its short side is scaled up
        prepare(Image.new("RGB", (MAX_PIXELS // 256 // 256 + 9, 1)), Size.square(256 * 16))
    with pytest.raises(FaultyImageError, match="floating-point"):
        prepare(Image.fromarray(np.full((4, 4), -3.0, dtype=np.float32)), Size.square(4))
