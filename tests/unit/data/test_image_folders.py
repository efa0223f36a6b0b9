"""Folders and archives of images: every image counts once, with the class it has, or the source is refused."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
from archive_bytes import archive, link, picture

from mpdit_core.data.images import FaultyImageError
from mpdit_core.data.sources import evenly_spread, find_images, natural_order, open_source, source_notes
from mpdit_core.errors import UserError
from mpdit_core.testing import check_dataset


def write(root: Path, files: dict[str, int | bytes]) -> Path:
    for name, what in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(what) if isinstance(what, int) else what)
    return root


def read(source: Path | str, **options) -> tuple[list[str], list[tuple[str, int]]]:
    dataset = open_source(str(source), **options)
    return dataset.class_names(), [(item.key, item.label) for item in dataset.items()]


def refused(source: Path | str, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(source, **options)
    str(caught.value).encode()  # can be printed
    return caught.value.code


def codes(source: Path | str, **options) -> list[str]:
    return [getattr(note, "code", "") for note in source_notes(open_source(str(source), **options))]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write(tmp_path / "images", {"a/0.png": 10, "a/1.png": 20, "b/0.png": 30})


def test_a_class_without_images_is_refused_unless_told(images: Path):
    write(images, {"aa/0.heic": b"x", "aa/1.heic": b"x"})
    (images / "c").mkdir()
    assert refused(images) == "empty-class"
    names, items = read(images, allow_empty_classes=True)
    assert names == ["a", "aa", "b", "c"]
    assert [label for _, label in items] == [0, 0, 2]
    assert codes(images, allow_empty_classes=True) == ["files-left-out", "empty-classes"]
    classes = images.parent / "classes.txt"
    classes.write_text("b\naa\na\nc\n")
    assert [label for _, label in read(images, classes=classes)[1]] == [2, 2, 0]


def test_a_class_in_an_archive_that_is_not_read_is_refused(images: Path, tmp_path: Path):
    (images / "c.zip").write_bytes(b"PK")
    assert refused(images) == "empty-class"
    assert read(images, allow_empty_classes=True)[0] == ["a", "b", "c"]
    (images / "c.zip").rename(images / "b.zip")  # beside the folder of the class
    assert codes(images) == ["files-left-out"]
    (images / "b.zip").rename(images / "b.tar.gz")
    assert codes(images) == ["files-left-out"]
    (tmp_path / "x.tar").write_bytes(archive(("a/0.png", picture(1)), ("c.TAR.GZ", b"x")))
    assert refused(tmp_path / "x.tar") == "empty-class"
    for name in ("x.zip", "x.tar.gz"):
        (tmp_path / name).write_bytes(b"x")
        assert refused(tmp_path / name) == "unread-archive"


def test_classes_that_look_like_one_are_named(tmp_path: Path):
    root = write(tmp_path / "x", {f"{name}/0.png": 1 for name in ("Cat", "cat", "dog", "caf\u00e9", "cafe\u0301")})
    notes = source_notes(open_source(str(root)))
    assert [getattr(note, "code", "") for note in notes] == ["similar-classes", "similar-classes"]
    assert ["'Cat'" in note.text and "'cat'" in note.text for note in notes] == [True, False]
    assert all(name in notes[1].text for name in (r"'caf\xe9'", r"'cafe\u0301'"))
    assert len(read(root)[0]) == 5


def test_the_only_class_that_can_be_read_is_not_a_wrapper(tmp_path: Path):
    root = write(tmp_path / "x", {"a/front/0.png": 1, "b/front/0.heic": b"x"})
    assert refused(root) == "empty-class"
    shutil.rmtree(root / "b")
    assert read(root)[0] == ["front"]


def test_what_is_left_out_is_counted(images: Path):
    write(images, {"a/x": b"x", "a/y.jxl": b"x", "features.h5": b"x", "b/clip.mpg": b"x", "readme.txt": b"x"})
    notes = source_notes(open_source(str(images)))
    assert [getattr(note, "code", "") for note in notes] == ["files-left-out"]
    for suffix in (".jxl", ".h5", ".mpg", "without extension"):
        assert f"1 file {suffix}" in notes[0].text
    assert ".txt" not in notes[0].text


def test_hidden_files_do_not_count(images: Path):
    junk = (".DS_Store", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", "__MACOSX/a/._0.png", "a/._0.png", ".x/0.png")
    before = read(images)
    write(images, dict.fromkeys(junk, b"x"))
    assert read(images) == before
    assert codes(images) == []


def test_images_are_counted_once(images: Path, tmp_path: Path):
    both = archive(("a/0.png", picture(10)), ("b/0.png", picture(30)))
    for name, data in {"a.tar": archive(("0.png", picture(10))), "a.TAR": both, "all.tar": both}.items():
        (images / name).write_bytes(data)
        assert refused(images) == "counted-twice", name
        (images / name).unlink()
    (images / "c").symlink_to("a")
    assert refused(images) == "counted-twice"
    inner = archive(("0.png", picture(10)))
    (tmp_path / "x.tar").write_bytes(archive(("a/0.png", picture(1)), ("a.tar", inner), ("b/0.png", picture(2))))
    assert refused(tmp_path / "x.tar") == "counted-twice"


def test_archives_give_what_their_folders_give(images: Path, tmp_path: Path):
    expected = read(images)
    members = [(f"{key}", (images / key).read_bytes()) for key, _ in expected[1]]
    path = tmp_path / "all.tar"
    path.write_bytes(archive(*members, ("b/0.png", link("nowhere")), ("b/0.png", picture(200))))
    assert read(path) == expected
    assert open_source(str(path)).image(2).getpixel((0, 0)) == (200, 200, 200)
    path.write_bytes(path.read_bytes()[:2000])
    assert refused(path) == "damaged-archive"
    nested = tmp_path / "nested"
    write(nested, {"a.tar": archive(*((name[2:], data) for name, data in members[:2])), "b/0.png": 30})
    assert read(nested) == expected
    check_dataset(open_source(str(nested)))


def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path: Path):
    root = write(tmp_path / "x", {f"{n}/0.png": n for n in range(12)})
    names, items = read(root)
    assert names == [str(n) for n in range(12)]
    assert all(int(key.partition("/")[0]) == label for key, label in items)
    assert len(source_notes(open_source(str(root)))) == 1


def test_splits_are_not_classes(tmp_path: Path):
    kaggle = write(tmp_path / "k", {f"{s}/{c}/0.png": 1 for s in ("Training", "Testing") for c in ("ill", "well")})
    assert read(kaggle)[0] == ["ill", "well"]
    assert read(kaggle, split="Testing")[1] == [("ill/0.png", 0), ("well/0.png", 1)]
    assert refused(kaggle, split="Test") == "no-such-split"
    parts = write(tmp_path / "p", {f"{s}/{c}/0.png": 1 for s in ("part1", "part2") for c in ("ill", "well")})
    assert read(parts)[0] == ["part1", "part2"]
    assert codes(parts) == ["splits-as-classes"]
    assert codes(write(tmp_path / "n", {"a/x/0.png": 1, "b/y/0.png": 1})) == []


def test_names_with_odd_bytes(images: Path):
    (images / "a/0.png").rename(os.fsdecode(os.fsencode(images) + b"/a/caf\xe9.png"))
    (images / "b").rename(os.fsdecode(os.fsencode(images) + b"/\xff b\n"))
    names, items = read(images)
    assert names == [r"\xff b" + "\n", "a"]
    assert items[2] == (r"a/caf\xe9.png", 1)
    dataset = open_source(str(images))
    assert dataset.image(2).size == (8, 8)
    assert dataset.fingerprint()
    assert refused(os.fsdecode(os.fsencode(images) + b"\xe9")) == "cannot-read"


def test_only_regular_files_are_opened(images: Path):
    os.mkfifo(images / "a/pipe.png")
    os.mkfifo(images / "b/pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(images / "b/socket.jpg"))
    (images / "a/device.png").symlink_to("/dev/zero")
    (images / "a/gone.png").symlink_to("nowhere.png")
    (images / "a/self.png").symlink_to("self.png")
    dataset = open_source(str(images))
    odd = [n for n, item in enumerate(dataset.items()) if not item.key.endswith(("0.png", "1.png"))]
    assert len(odd) == 5
    for index in odd:
        with pytest.raises(FaultyImageError):
            dataset.image(index)
    assert refused(images, labels=images / "b/pipe.txt") == "no-such-file"
    os.mkfifo(images / "c.tar")
    assert refused(images) == "cannot-read"
    assert refused(images / "c.tar") == "cannot-read"
    assert refused("/dev/zero") == "no-images"


def test_folders_that_do_not_end(images: Path):
    (images / "a/loop").symlink_to(".")
    (images / "b/up").symlink_to("..")
    expected = read(images)
    assert len(expected[1]) == 3
    deep = images / "b"
    for _ in range(20):
        deep = deep / ("d" * 90)
        deep.mkdir()
    write(deep, {"9.png": 1})
    assert len(read(images)[1]) == 4


def test_places_that_cannot_be_read(tmp_path: Path):
    assert refused("x" * 5000) == "cannot-read"
    assert refused(tmp_path / "nowhere") == "no-such-source"
    assert refused(tmp_path / "no\0name") in ("cannot-read", "no-such-source")
    assert refused("~nobody-of-this-name/x") == "cannot-read"
    assert refused(write(tmp_path / "x", {"a/0.heic": b""})) == "no-images"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_rights(images: Path):
    (images / "b").chmod(0)
    try:
        assert refused(images) == "cannot-read"
    finally:
        (images / "b").chmod(0o700)


def test_labels_by_file(tmp_path: Path):
    root = write(tmp_path / "x", {"0.png": 1, "1.png": 2, "labels.csv": b"file,label\n0.png,red fox\n1.png,cat\n"})
    assert read(root) == (["cat", "red fox"], [("0.png", 1), ("1.png", 0)])
    assert codes(root) == []
    write(root, {"labels.txt": b"0.png 1\n1.png 1\n"})
    assert refused(root) == "ambiguous-labels"
    assert refused(root, labels=root / "labels.txt") == "bad-label-file"
    write(root, {"labels.txt": b"0.png 2\n1.png 0\n"})
    assert codes(root, labels=root / "labels.txt") == ["empty-classes"]


def test_names_are_sorted_by_their_numbers():
    digits = "9" * 5000  # more than int() takes
    names = ["b.png", "a10b/1.png", digits + "1", "a10.png", "a2.png", digits + "0"]
    expected = [digits + "0", digits + "1", "a2.png", "a10.png", "a10b/1.png", "b.png"]
    assert sorted(names, key=natural_order) == expected


def test_a_part_of_a_sorted_list_has_all_of_it():
    assert evenly_spread(10, 5) == [1, 3, 5, 7, 9]
    assert evenly_spread(3, 3) == [0, 1, 2]
    assert evenly_spread(50_000, 1000)[0] == 25
    with pytest.raises(ValueError, match="4 of 3"):
        evenly_spread(3, 4)


def test_images_beside_class_folders_are_refused(images: Path):
    write(images, {"stray.tif": 5})
    assert [entry.key for entry in find_images(images).images] == ["a/0.png", "a/1.png", "b/0.png", "stray.tif"]
    assert refused(images) == "mixed-layout"
