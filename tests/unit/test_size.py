"""Height and width: read from all spellings, written as one number if they are equal."""

from __future__ import annotations

import json

import pytest

from mpdit_core.errors import UserError
from mpdit_core.presets import load_preset
from mpdit_core.settings import Settings, parse_assignments, read_toml, to_toml, validate
from mpdit_core.size import MAX_RESOLUTION, Size


class Picture(Settings):
    size: Size | None = None


@pytest.mark.parametrize(
    ("given", "size", "written"),
    [(256, Size(256, 256), 256), ("256", Size(256, 256), 256), ("256x256", Size(256, 256), 256),
     ("256x384", Size(256, 384), "256x384"), ([256, 384], Size(256, 384), "256x384"),
     (Size(3, 2), Size(3, 2), "3x2"), (MAX_RESOLUTION, Size.square(MAX_RESOLUTION), MAX_RESOLUTION)],
)  # fmt: skip
def test_spellings(given, size, written):
    picture = validate(Picture, {"size": given})
    assert picture.size == size
    assert picture.model_dump() == json.loads(picture.model_dump_json()) == {"size": written}
    assert str(size) == str(written)
    assert validate(Picture, picture.model_dump()) == picture


@pytest.mark.parametrize(
    "given",
    [0, -8, True, 2.0, MAX_RESOLUTION + 1, "", "x", "256x", "0x8", "8x8x8", "8 x 8", "-8x8", "٣", "9" * 5000, [],
     [1, 2, 3], [8, "8"], {}],
)  # fmt: skip
def test_anything_else_is_refused(given):
    with pytest.raises(UserError) as refused:
        validate(Picture, {"size": given})
    assert refused.value.code == "invalid-value"


def test_arithmetic():
    assert Size(16, 24) // 8 == Size(2, 3)
    assert Size(2, 3) * 8 == Size(16, 24)
    assert Size(16, 24).area == 384
    assert Size(16, 24).is_multiple(8)
    assert not Size(16, 24).is_multiple(16)
    assert not Size(24, 16).is_multiple(16)


def test_assignments_and_toml_files(tmp_path):
    assert validate(Picture, parse_assignments(["size=16x24"])).size == Size(16, 24)
    assert validate(Picture, parse_assignments(["size=[16, 24]"])).size == Size(16, 24)
    run = load_preset("tiny").model_copy(update={"resolution": Size(16, 24)})
    (tmp_path / "config.toml").write_text(to_toml(run), encoding="utf-8")
    read = read_toml(tmp_path / "config.toml")
    assert (read["resolution"], read["model"]["input_size"]) == ("16x24", 16)
    assert validate(type(run), read) == run
