"""Pictures: the places of images, labels and axes, and the text for a terminal."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from mpdit_core import pictures

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour, side=16):
    return np.broadcast_to(np.array(colour, dtype=np.uint8)[:, None, None], (3, side, side)).copy()


def test_tiles_are_enlarged_without_smoothing():
    image = plain(RED)
    image[:, 0, 1] = BLUE
    picture = pictures.tile(image, 3)
    assert picture.size == (48, 48)
    assert [picture.getpixel((x, 0)) for x in (2, 3, 5, 6)] == [RED, BLUE, BLUE, RED]
    assert pictures.tile(image[:1]).getpixel((0, 0)) == image[0, 0, 0]
    glass = np.concatenate([image, image[:1] * 0])
    assert pictures.tile(glass).getpixel((0, 0)) == (*RED, 0)
    assert pictures.labelled_grid(glass[None], [], 1).getpixel((10, 10)) == pictures.PAPER
    with pytest.raises(ValueError, match="uint8"):
        pictures.tile(image.astype(np.float32))


@pytest.mark.parametrize(("side", "factor"), [(8, 9), (16, 5), (32, 3), (256, 1)])
def test_enlargement(side, factor):
    assert pictures.enlargement(side) == factor


def test_a_grid_reads_from_left_to_right():
    picture = pictures.labelled_grid(np.stack([plain(RED), plain(BLUE), plain(RED)]), ["a", "b", "c"], 2)
    assert picture.getpixel((44, 44)) == RED
    assert picture.getpixel((44 + 84, 44)) == BLUE
    assert picture.getpixel((44 + 84, picture.height - 44)) == pictures.PAPER
    headed = pictures.labelled_grid(np.stack([plain(RED), plain(BLUE)]), [], 2, heads=("one", "two"))
    assert headed.getpixel((44, headed.height - 44)) == RED
    assert headed.crop((88, 0, 168, 16)).getextrema() != ((255, 255),) * 3
    with pytest.raises(ValueError, match="2 labels"):
        pictures.labelled_grid(plain(RED)[None], ["a", "b"], 2)


def test_a_contact_sheet_has_rows_and_columns():
    cells = [[plain(RED)[None], plain(BLUE)[None]], [plain(BLUE)[None], plain(RED)[None]]]
    picture = pictures.contact_sheet(cells, row_labels=["r", "s"], column_labels=["c", "d"], column_axis="axis")
    pixels = np.asarray(picture)
    assert [(pixels == colour).all(-1).sum() for colour in (RED, BLUE)] == [2 * 80 * 80] * 2
    top, left = np.argwhere((pixels == RED).all(-1))[0]
    below, right = np.argwhere((pixels == RED).all(-1))[-1]
    assert (below - top, right - left) == (80 + 8 + 79, 80 + 8 + 79)


def test_columns():
    assert pictures.square_columns(60, classes=10) == 10
    assert pictures.square_columns(24) == 6
    assert pictures.square_columns(1) == 1
    assert [pictures.square_columns(n) for n in (4, 6, 7, 9, 12, 16)] == [2, 3, 4, 3, 4, 4]


def test_text_that_is_too_wide_is_cut():
    font = pictures.load_font()
    assert pictures.shorten("goldfish", font, 1000) == "goldfish"
    cut = pictures.shorten("goldfish" * 10, font, 60)
    assert cut.endswith("…")
    assert font.getlength(cut) <= 60


def test_files(tmp_path):
    frames = [pictures.tile(plain(colour)) for colour in (RED, BLUE)]
    pictures.save_gif(frames, tmp_path / "a.gif")
    with GifImageFile(tmp_path / "a.gif") as moving:
        assert moving.n_frames == 2
        assert moving.info["duration"] == 80
    pictures.save_png(frames[1], tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").getpixel((3, 3)) == BLUE
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.gif", "a.png"]


def test_terminal_text():
    picture = Image.new("RGB", (16, 16), RED)
    picture.paste(BLUE, (0, 0, 16, 1))
    lines = pictures.terminal_text(picture, 80).split("\n")
    assert len(lines) == 8
    assert lines[0].count("▀") == 16
    assert "38;2;0;0;255m\x1b[48;2;255;0;0m" in lines[0]
    assert max(line.count("▀") for line in pictures.terminal_text(picture, 5).split("\n")) == 5
