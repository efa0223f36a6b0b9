"""Whatever stands in label files, archives and pictures: an answer or a `UserError`, never another error, and soon."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_bytes import archive, link, picture
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from odd_images import odd_images

from mpdit_core.data.images import open_image, prepare
from mpdit_core.data.sources import open_source, source_notes
from mpdit_core.data.sources.archives import read_archive
from mpdit_core.data.sources.label_files import read_image_classes
from mpdit_core.errors import UserError
from mpdit_core.size import Size

QUICK = settings(
    max_examples=150, deadline=2000, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

IMAGES = ["0.png", "1.png", "10.png", "a b.png", "x/1.png", "x/y/2.jpg"]
WORDS = [
    *IMAGES, "0", "x", "1", "a", "golden", " ", "  ", ",", ";", "\t", "\n", "\r\n", '"', '""', "#", "/", "./", "..",
    "\\", "label", "file", "\ufeff", "é", "²", "٣", "-1", "1.0", "nan", "9" * 30, "\0", "\x85",
]  # fmt: skip
TARS = [
    archive(("a/0.png", picture(1)), ("b/1.png", picture(2)), ("b/2.png", link("../a/0.png")), ("c", link("a"))),
    archive(("ü" * 90 + "/0.png", picture(1)), ("b/x.tar", archive(("9.png", picture(3)))), ("0.cls", b"1")),
    archive(("x" * 200 + "/0.png", picture(1)), ("0.png", picture(3)), ("0.cls", b"0"), form=tarfile.GNU_FORMAT),
]
FIELDS = (0, 124, 136, 148, 156, 157)  # of a header: name, size, time, sum, kind, target of a link
PICTURES = [odd.data for odd in odd_images().values() if 0 < len(odd.data) < 5000]


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes], *, fields: tuple[int, ...] = ()) -> bytes:
    """One of `originals` with bytes changed (first of all in `fields` of a block of 512), cut or repeated."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        if fields and draw(st.booleans()):
            at = min(at // 512 * 512 + draw(st.sampled_from(fields)), len(data) - 1)
        new = draw(
            st.sampled_from([b"\0", b"\xff", b"-", b"8", b"9" * 11, b"\x80" + b"\xff" * 11, b"x", b"L", b"S", b"2"])
        )
        data[at : at + len(new)] = new
    if draw(st.booleans()):
        del data[draw(st.integers(1, len(data))) :]
    return bytes(data)


def with_right_sums(data: bytes) -> bytes:
    """`data` with the sum of every block that looks like a header put right, so that the rest of it is looked at."""
    blocks = [bytearray(data[n : n + 512]) for n in range(0, len(data), 512)]
    for block in blocks:
        if len(block) == 512 and block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def refusal(work: Callable[[], object]) -> str:
    """The code of the `UserError` that `work` raises, whose message can be printed; empty if it raises nothing."""
    try:
        work()
    except UserError as error:
        str(error).encode()
        return error.code
    return ""


@seed(0)
@QUICK
@given(text=st.lists(st.sampled_from(WORDS), max_size=30).map("".join))
def test_label_files(tmp_path: Path, text: str):
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")

    def read(images: list[str]) -> None:
        classes = read_image_classes(path, images)
        assert len(classes) == len(images)
        assert all(classes)

    for images in (IMAGES, ["0.png", "1.png"]):
        assert refusal(lambda: read(images)) in ("", "ambiguous-labels", "bad-label-file", "damaged-file")  # noqa: B023


@seed(0)
@QUICK
@given(data=mutated(TARS, fields=FIELDS), right=st.booleans())
def test_archives(tmp_path: Path, data: bytes, right: bool):
    path = tmp_path / "x.tar"
    path.write_bytes(with_right_sums(data) if right else data)

    def read() -> None:
        assert all(member.offset + member.size <= len(data) for member in read_archive(path).files)
        source = open_source(str(path))
        assert source.fingerprint()
        source_notes(source)
        for index in range(len(source.items())):
            source.image(index)

    assert refusal(read) != "user-error"


@seed(0)
@QUICK
@given(data=mutated(PICTURES))
def test_pictures(data: bytes):
    assert refusal(lambda: prepare(open_image(data), Size.square(8))) in ("", "faulty-image")


@seed(0)
@QUICK
@given(data=mutated(TARS, fields=FIELDS), label=st.sampled_from(WORDS))
def test_shards(tmp_path: Path, data: bytes, label: str):
    plugin = pytest.importorskip("mpdit_webdataset")
    path = tmp_path / "x.tar"
    for content in (data, archive(("0.png", picture(1)), ("0.cls", label.encode()), ("0.json", data))):
        path.write_bytes(content)
        assert refusal(plugin.WebDataset(shards=str(path)).items) != "user-error"
