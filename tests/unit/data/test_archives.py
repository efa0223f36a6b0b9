"""Archives: every member is found where it lies, links are followed, and what is not complete is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_bytes import archive, link, picture

from mpdit_core.data.sources.archives import NOWHERE, read_archive
from mpdit_core.errors import UserError

TWO = (("a/0.png", b"first"), ("b/1.png", b"second" * 100))


def contents(path: Path) -> dict[str, bytes | None]:
    data = path.read_bytes()
    return {
        m.path: None if m.offset == NOWHERE else data[m.offset : m.offset + m.size] for m in read_archive(path).files
    }


def refused(path: Path, data: bytes) -> UserError:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_archive(path)
    return caught.value


@pytest.mark.parametrize("prefix", ["", "./", "/", "ü" * 120 + "/", "x" * 300 + "/"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members(tmp_path: Path, prefix: str, form: int):
    path = tmp_path / "x.tar"
    path.write_bytes(archive(*((prefix + name, data) for name, data in TWO), form=form))
    below = prefix.removeprefix("./").lstrip("/")
    assert contents(path) == {below + name: data for name, data in TWO}


def test_an_old_header_whose_short_name_ends_with_a_slash_is_no_folder(tmp_path: Path):
    path, name = tmp_path / "x.tar", "k" * 99 + "/pic.png"
    data = bytearray(archive((name, b"first"), form=tarfile.GNU_FORMAT))
    header = data.index(b"k" * 99 + b"/", data.index(b"pic.png"))  # after the header of the long name
    data[header + 156] = 0
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    path.write_bytes(bytes(data))
    assert contents(path) == {name: b"first"}


def test_the_last_member_of_a_name_counts(tmp_path: Path):
    path = tmp_path / "x.tar"
    path.write_bytes(archive(*TWO, ("./a/0.png", b"replaced")))
    assert contents(path)["a/0.png"] == b"replaced"


def test_links(tmp_path: Path):
    path = tmp_path / "x.tar"
    hard = tarfile.LNKTYPE
    path.write_bytes(
        archive(
            ("a/0.png", b"old"),
            ("b/hard.png", link("a/0.png", hard)),
            ("a/0.png", b"new"),
            ("b/symbolic.png", link("../a/0.png")),
            ("b/again.png", link("symbolic.png")),
            ("b/outside.png", link("../../../etc/passwd")),
            ("b/loop.png", link("loop.png")),
            ("b/gone.png", link("a/9.png", hard)),
            ("c", link("a")),
            ("a/up", link("..")),
        )
    )
    assert contents(path) == {
        "a/0.png": b"new",
        "b/hard.png": b"old",
        "b/symbolic.png": b"new",
        "b/again.png": b"new",
        "b/outside.png": None,
        "b/loop.png": None,
        "b/gone.png": None,
        "c/0.png": b"new",
        "a/up": None,
    }


def test_names_that_are_no_text(tmp_path: Path):
    path = tmp_path / "x.tar"
    path.write_bytes(archive(("a/caf\udce9.png", b"x"), form=tarfile.GNU_FORMAT))
    assert list(contents(path)) == [r"a/caf\xe9.png"]


def test_an_incomplete_archive_is_refused(tmp_path: Path):
    whole, path = archive(*TWO), tmp_path / "x.tar"
    ends = 512 + 512 + 512 + 1024  # two headers, and the members in whole blocks
    for size in (0, 100, 512, 700, 1024, 1100, 2000, ends - 1, ends, ends + 511):
        assert refused(path, whole[:size]).code == "damaged-archive", size
    assert refused(path, whole + whole).code == "damaged-archive", "a second archive behind the first"
    path.write_bytes(whole[: ends + 512])
    assert len(contents(path)) == 2, "one block of zeros is an end"


def test_a_wrong_header_is_refused(tmp_path: Path):
    whole, path = bytearray(archive(*TWO)), tmp_path / "x.tar"
    for header in (0, 1024):
        for at in (0, 124, 148, 156):
            damaged = bytearray(whole)
            damaged[header + at] ^= 1
            assert refused(path, bytes(damaged)).code == "damaged-archive"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_archive_is_called_so(tmp_path: Path, compress: Callable[[bytes], bytes]):
    assert refused(tmp_path / "x.tar", compress(archive(*TWO))).code == "unread-archive"
    (tmp_path / "x.tar").write_bytes(archive(("BZh", b"only a name")))
    assert list(contents(tmp_path / "x.tar")) == ["BZh"]


@pytest.mark.parametrize(
    "headers",
    [
        {"size": "-512"}, {"size": "99999999999"}, {"size": "many"}, {"mtime": "nan"}, {"mtime": "inf"},
        {"GNU.sparse.major": "1"},
    ],
)  # fmt: skip
def test_impossible_headers_are_refused(tmp_path: Path, headers: dict[str, str]):
    member = tarfile.TarInfo()
    member.pax_headers = headers
    assert refused(tmp_path / "x.tar", archive(("a.png", member))).code == "damaged-archive"


def test_only_regular_files_are_opened(tmp_path: Path):
    import os

    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(UserError) as caught:
        read_archive(tmp_path / "x.tar")
    assert caught.value.code == "cannot-read"
    assert refused(tmp_path / "y.tar", picture(1)).code == "damaged-archive"


def test_an_archive_in_an_archive(tmp_path: Path):
    inner, path = archive(*TWO), tmp_path / "x.tar"
    path.write_bytes(archive(("before", b"1234"), ("inner.tar", inner), ("after", b"5")))
    place = next(member for member in read_archive(path).files if member.path == "inner.tar")
    found = read_archive(path, start=place.offset, size=place.size).files
    assert [member.path for member in found] == ["a/0.png", "b/1.png"]
    with pytest.raises(UserError):
        read_archive(path, start=place.offset, size=1024)
