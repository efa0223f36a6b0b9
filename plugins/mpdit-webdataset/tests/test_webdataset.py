"""Shards written here give their pictures and labels back; a bad shard is named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from mpdit_webdataset import WebDataset
from PIL import Image

from mpdit_core.api import UserError
from mpdit_core.testing import check_dataset


def write_shards(folder: Path, *, labelled: bool = True) -> str:
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as archive:
            for n in range(3):
                buffer = io.BytesIO()
                Image.new("RGB", (8, 8), (shard * 100, n * 50, 7)).save(buffer, "png")
                for suffix, data in (("png", buffer.getvalue()), ("cls", str(n).encode())):
                    if suffix == "png" or labelled:
                        member = tarfile.TarInfo(f"{shard}{n}.{suffix}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
    return f"{folder}/s-{{0..1}}.tar"


def test_shards_give_pictures_and_labels_back(tmp_path: Path):
    data = WebDataset(shards=write_shards(tmp_path))
    check_dataset(data)
    assert [item.label for item in data.items()] == [0, 1, 2, 0, 1, 2]
    assert data.image(4).getpixel((0, 0)) == (100, 50, 7)


@pytest.mark.parametrize(
    ("fault", "code"), [("missing", "no-such-file"), ("unlabelled", "no-labels"), ("truncated", "damaged-file")]
)
def test_bad_shards_are_named(tmp_path: Path, fault: str, code: str):
    pattern = write_shards(tmp_path, labelled=fault != "unlabelled")
    if fault == "missing":
        (tmp_path / "s-1.tar").unlink()
    if fault == "truncated":
        (tmp_path / "s-1.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(UserError, match=r"s-\d\.tar") as caught:
        WebDataset(shards=pattern).items()
    assert caught.value.code == code
