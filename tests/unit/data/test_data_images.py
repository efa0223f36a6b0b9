"""Image preparation: ADM's crop to the byte, and kinds of pictures beside those of test_odd_images.py."""

from __future__ import annotations

import io
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


def saved(image: Image.Image, kind: str) -> Image.Image:
    data = io.BytesIO()
    image.save(data, kind)
    return open_image(data.getvalue())


def test_palettes_and_inks():
    palette = photo(3, (16, 16)).quantize(16)
    assert np.array_equal(prepare(saved(palette, "GIF"), Size.square(16)), np.asarray(palette.convert("RGB")))
    clear = Image.new("P", (8, 8), 0)
    clear.putpalette([9, 9, 9, 50, 60, 70])
    clear.info["transparency"] = 0
    assert prepare(saved(clear, "GIF"), Size.square(8))[0, 0].tolist() == [255, 255, 255]
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red = prepare(saved(cmyk, "JPEG"), Size.square(16))[8, 8]
    assert red[0] > 240
    assert red[1:].max() < 20


def test_a_thin_image_that_scaling_would_make_huge_is_refused():
    with pytest.raises(FaultyImageError):
        prepare(Image.new("RGB", (MAX_PIXELS // 256 // 256 + 9, 1)), Size.square(256 * 16))
