"""Pictures of unusual form give the pixels that went into their files, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
from odd_images import odd_images
from PIL import Image

from mpdit_core.data.images import FORMATS, FaultyImageError, open_image, prepare, suffixes
from mpdit_core.size import Size

IMAGES = odd_images()


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_those_of_the_file(name: str):
    data, expected, tolerance = IMAGES[name]
    if expected is None:
        with pytest.raises(FaultyImageError) as caught:
            prepare(open_image(data), Size.square(16))
        assert caught.value.code == "faulty-image"
        return
    got = prepare(open_image(data), Size.square(16))
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= tolerance


def test_damaged_exif_from_a_plugins_reader_does_not_cost_the_picture():
    image = Image.new("RGB", (16, 16), (1, 2, 3))
    image.info["exif"] = b"Exif\0\0II*\0\xff\xff"
    assert prepare(image, Size.square(16))[0, 0].tolist() == [1, 2, 3]


def test_extensions_are_those_of_the_formats():
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".bmp", ".gif", ".avif", ".jp2", ".ppm"} <= suffixes()
    assert not {".h5", ".mpg", ".eps", ".pdf", ".heic", ""} & suffixes()
    assert all(kind in Image.OPEN for kind in FORMATS)
