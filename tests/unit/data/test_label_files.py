"""Label files are read by a stated format, and refused where they fit in two ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mpdit_core.data.sources.class_lists import class_order, label_numbers, read_class_names
from mpdit_core.data.sources.label_files import read_image_classes
from mpdit_core.errors import UserError

FLAT = ["0.png", "1.png", "2.png"]
DEEP = [f"{folder}/{n}.png" for folder in "xyz" for n in (1, 2)]


def read(folder: Path, text: str | bytes, images: Sequence[str] = FLAT) -> list[str]:
    path = folder / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_image_classes(path, images)


@pytest.mark.parametrize(
    "text",
    [
        "0.png,golden retriever\n1.png,red fox\n2.png,cat\n",
        "file,label\n0.png,golden retriever\n1.png,red fox\n2.png,cat\n",
        "picture,kind\n0.png,golden retriever\n1.png,red fox\n2.png,cat\n",
        "0.png, golden retriever\n1.png,\"red fox\"\n2.png, cat",
        "0.png\tgolden retriever\n1.png\tred fox\n2.png\tcat\n",
        "\ufeffimage_id\tlabel\r\n0.png\tgolden retriever\r\n1.png\tred fox\r\n2.png\tcat\r\n",
        "file;label\n0.png;golden retriever\n1.png;red fox\n2.png;cat\n",
        "0.png golden retriever\n1.png   red fox\n\n# a comment\n2.png cat\n",
        "label,file\ngolden retriever,0.png\nred fox,1.png\ncat,2.png\n",
        "file,width,label\n0.png,7,golden retriever\n1.png,8,red fox\n2.png,9,cat\n",
        "0,golden retriever\n1,red fox\n2,cat\n",
        "images\\0.png,golden retriever\nimages\\1.png,red fox\n./2.png,cat\n",
        "0.png,golden retriever\n1.png,red fox\n2.png,cat\nof-another-image.png,dog\n",
    ],
)  # fmt: skip
def test_whole_class_names(tmp_path: Path, text: str):
    assert read(tmp_path, text) == ["golden retriever", "red fox", "cat"]


def test_quotes_hold_commas_and_tabs_leave_them(tmp_path: Path):
    assert read(tmp_path, '0.png,"tench, Tinca tinca"\n1.png,a\n2.png,a\n')[0] == "tench, Tinca tinca"
    assert read(tmp_path, "0.png\ttench, Tinca tinca\n1.png\ta\n2.png\ta\n")[0] == "tench, Tinca tinca"
    assert read(tmp_path, "0.png tench, Tinca tinca\n1.png a\n2.png a\n")[0] == "tench, Tinca tinca"


def test_kaggles_boxes(tmp_path: Path):
    text = "ImageId,PredictionString\n0,n02 85 1 499 272\n1,n01 1 2 3 4 n01 5 6 7 8\n2,n02 1 1 1 1\n"
    assert read(tmp_path, text) == ["n02", "n01", "n02"]


def test_names_match_by_path_or_by_an_end_of_it(tmp_path: Path):
    expected = [key[0] for key in DEEP]
    for prefix in ("", "images/", "/data/images/", "./"):
        assert read(tmp_path, "".join(f"{prefix}{key} {key[0]}\n" for key in DEEP), DEEP) == expected
    assert read(tmp_path, "".join(f"{key} {key[2]}\n" for key in DEEP), [f"deep/{key}" for key in DEEP]) == list(
        "121212"
    )
    dotted = ["a.v1.png", "a.v2.png"]
    assert read(tmp_path, "a.v1 one\na.v2 two\n", dotted) == ["one", "two"]
    assert refused(tmp_path, "a.v1.jpg one\na.v2.jpg two\n", dotted) == "bad-label-file"


def refused(folder: Path, text: str | bytes, images: Sequence[str] = FLAT) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, text, images)
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("1.png a\n2.png b\n", DEEP),  # fits an image in each folder
        ("x/1.png a\ny/1.png b\n", ["1.png"]),  # both mean the one image
        ("0.png a\n0.png b\n1.png a\n2.png a\n", FLAT),
        ("0.png,a,1\n1.png,b,2\n2.png,c,3\n", FLAT),
        ("file,coarse_label,fine_label\n0.png,a,1\n1.png,b,2\n2.png,c,3\n", FLAT),
        ("a\nb\na\n", ["1.png", "10.png", "2.png"]),  # which order?
        ("x 1\ny 2\nz 3\n", FLAT),  # classes, or images and classes?
        ("0,1\n1,2\n2,0\n", FLAT),  # both columns name all images
        ("a b c\n1.png b\n", ["a.png", "a b.png"]),
        ("a 1\nb 2\n", ["a.png", "a.jpg", "b.png"]),
    ],
)
def test_what_fits_in_two_ways_is_refused(tmp_path: Path, text: str, images: list[str]):
    assert refused(tmp_path, text, images) == "ambiguous-labels"


@pytest.mark.parametrize(
    "text",
    [
        "", "0.png,a\n1.png,b\n", "0.png,a\n1.png,b\n2.png\n", "0.png,a\n1.png,b\n2.png,\n",
        '0.png,"a\n1.png,b\n2.png,c\n', "0.png,tench, Tinca\n1.png,b\n2.png,c\n", "a\nb\n",
        "8.png a\n9.png b\n7.png c\n", "x" * 20_000,
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str):
    assert refused(tmp_path, text) == "bad-label-file"


def test_one_class_per_line(tmp_path: Path):
    assert read(tmp_path, "red fox\ncat\nred fox\n") == ["red fox", "cat", "red fox"]
    assert read(tmp_path, 'label\n1\n0\n"1"') == ["1", "0", "1"]


def test_what_is_no_text_is_refused(tmp_path: Path):
    assert refused(tmp_path, "0.png,a\n".encode("utf-16")) == "damaged-file"
    assert refused(tmp_path, b"0.png,caf\xe9\n") == "damaged-file"


def test_numbers_as_labels(tmp_path: Path):
    listed = tmp_path / "classes.txt"
    listed.write_text("10\n2\n")
    assert label_numbers(["1", "0", "2"], None, "x") == (["0", "1", "2"], [1, 0, 2])
    assert label_numbers(["1.0", "0.0"], None, "x") == (["0", "1"], [1, 0])
    assert label_numbers(["10", "2"], listed, "x") == (["10", "2"], [0, 1]), "names that are listed are names"
    assert label_numbers(["1", "0"], listed, "x") == (["10", "2"], [1, 0]), "other numbers are places in the list"
    for labels in (["1", "3"], ["-1", "0"], ["0", "999999999"], ["0", "1", "99999999999"]):
        with pytest.raises(UserError) as caught:
            label_numbers(labels, None, "x")
        assert caught.value.code == "bad-label-file"


def test_class_lists(tmp_path: Path):
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\r\ndog")
    assert read_class_names(path) == ["cat", "dog"]
    path.write_text("n02\tdog, large\nn01 cat\n")
    assert class_order({"n01", "n02"}, path) == ["n02", "n01"]
    path.write_text("dog, large\ndog, small\n")
    for present in ({"dog"}, {"dog, large", "cat"}):  # two lines name one class; a class is missing
        with pytest.raises(UserError) as caught:
            class_order(present, path)
        assert caught.value.code == "bad-class-list"
        assert "classes.txt" in caught.value.what
    assert class_order({"10", "9", "0"}, None) == ["0", "9", "10"]
    assert class_order({"10", "9", "b"}, None) == ["10", "9", "b"]
