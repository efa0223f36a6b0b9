"""Shards written here give their pictures and labels back; what can be read in two ways, or is damaged, is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from mpdit_webdataset import WebDataset
from PIL import Image

from mpdit_core.api import UserError
from mpdit_core.testing import check_dataset


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 50, 7)).save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def samples(
    *labels: object, form: str = "{:04d}", picture_suffix: str = "png", label_suffix: str = "cls"
) -> dict[str, bytes]:
    members = {}
    for n, label in enumerate(labels):
        members[f"{form.format(n)}.{picture_suffix}"] = picture(n * 10)
        members[f"{form.format(n)}.{label_suffix}"] = str(label).encode()
    return members


def refused(**options: str) -> str:
    with pytest.raises(UserError) as caught:
        WebDataset(**options).items()
    return caught.value.code


def test_shards_give_pictures_and_labels_back(tmp_path: Path):
    for shard in range(2):
        write(tmp_path / f"s-{shard}.tar", samples(0, 1, 2))
    data = WebDataset(shards=f"{tmp_path}/s-{{0..1}}.tar")
    check_dataset(data)
    assert [item.label for item in data.items()] == [0, 1, 2, 0, 1, 2]
    assert data.image(4).getpixel((0, 0)) == (10, 50, 7)


@pytest.mark.parametrize(
    "members",
    [
        samples(0, 1, form="./{:04d}"),
        samples(0, 1, form="v1.0/{:04d}"),
        samples(0, 1, picture_suffix="PNG", label_suffix="CLS"),
        samples(0, 1, picture_suffix="input.png"),
        samples(json.dumps({"label": 0}), json.dumps({"cls": 1}), label_suffix="json"),
        samples(" 0\n", "1\r\n"),
    ],
)
def test_keys_and_labels(tmp_path: Path, members: dict[str, bytes]):
    data = WebDataset(shards=write(tmp_path / "x.tar", members))
    assert [item.label for item in data.items()] == [0, 1]
    assert [int(np.asarray(data.image(n))[0, 0, 0]) for n in range(2)] == [0, 10]


def test_labels_that_are_texts(tmp_path: Path):
    shards = write(tmp_path / "x.tar", samples("dog", "cat", "dog"))
    data = WebDataset(shards=shards)
    assert (data.class_names(), [item.label for item in data.items()]) == (["cat", "dog"], [1, 0, 1])
    names = tmp_path / "names.txt"
    names.write_bytes(b"dog\r\nbird\r\ncat")
    data = WebDataset(shards=shards, classes=str(names))
    assert (data.class_names(), [item.label for item in data.items()]) == (["dog", "bird", "cat"], [0, 2, 0])
    names.write_text("dog\n")
    assert refused(shards=shards, classes=str(names)) == "bad-class-list"


def test_labels_that_do_not_begin_at_0(tmp_path: Path):
    names = tmp_path / "names.txt"
    names.write_text("none\ncat\ndog")
    for labels in ((1, 2), (-1, 0), (0, "cat"), (0, 999_999_999)):
        assert refused(shards=write(tmp_path / "x.tar", samples(*labels))) == "bad-label-file"
    data = WebDataset(shards=write(tmp_path / "x.tar", samples(1, 2)), classes=str(names))
    assert (data.class_names(), [item.label for item in data.items()]) == (["none", "cat", "dog"], [1, 2])
    assert refused(shards=write(tmp_path / "x.tar", samples(3)), classes=str(names)) == "bad-label-file"


@pytest.mark.parametrize(
    "change",
    [
        {"0000.jpg": picture(1)},
        {"0000.mask.png": picture(1)},
        {"0000.json": b'{"label": 1}'},
        {"0009.png": picture(1)},
        {"0009.cls": b"1"},
        {"0009.heic": b"x", "0009.cls": b"1"},
        {"0000.cls": b""},
        {"0000.json": b"{" * 100_000},
        {"0000.cls": b"\xff"},
    ],
)
def test_samples_that_are_not_one_picture_and_one_label(tmp_path: Path, change: dict[str, bytes]):
    assert refused(shards=write(tmp_path / "x.tar", samples(0, 1) | change)) == "bad-shard"


def test_bad_shards_are_named(tmp_path: Path):
    shard = Path(write(tmp_path / "x.tar", samples(0, 1)))
    assert refused(shards=f"{tmp_path}/{{x,y}}.tar") == "no-such-file"
    assert refused(shards=f"{tmp_path}/{{x,x}}.tar") == "counted-twice"
    assert refused(shards=f"{tmp_path}/{{x") in ("invalid-value", "no-such-file")
    assert refused(shards=write(tmp_path / "y.tar", {})) == "no-images"
    whole = shard.read_bytes()
    for data in (whole[:2048], whole[:3000], b"no archive" * 100, whole[:1024] + b"x" + whole[1025:]):
        shard.write_bytes(data)
        with pytest.raises(UserError, match=r"x\.tar"):
            WebDataset(shards=str(shard)).items()
