"""Data sets on the Hub: which columns are read, and what their labels mean. Local ones, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pytest
from archive_bytes import picture

from mpdit_core.data.sources import count_items, open_source, read_items, source_notes
from mpdit_core.data.sources.hub import class_table, find_columns
from mpdit_core.errors import UserError

IMAGE, NUMBER, TEXT = datasets.Image(), datasets.Value("int64"), datasets.Value("string")
CLASS = datasets.ClassLabel(names=["b", "a"])


@pytest.mark.parametrize(
    ("features", "chosen"),
    [
        ({"image": IMAGE, "label": NUMBER}, ("image", "label")),
        ({"mask": IMAGE, "image": IMAGE, "label": CLASS}, ("image", "label")),
        ({"photograph": IMAGE, "kind": CLASS}, ("photograph", "kind")),
        ({"img": IMAGE, "coarse_label": CLASS, "fine_label": CLASS}, ("img", "fine_label")),
        ({"image": IMAGE, "caption": TEXT, "label_text": TEXT}, ("image", "label_text")),
        ({"image": IMAGE, "caption": TEXT}, ("image", None)),
    ],
)
def test_columns(features: dict[str, Any], chosen: tuple[str, str]):
    assert find_columns(features, "x") == chosen


@pytest.mark.parametrize(
    ("features", "options", "code"),
    [
        ({"left": IMAGE, "right": IMAGE, "label": CLASS}, {}, "ambiguous-columns"),
        ({"image": IMAGE, "kind": CLASS, "sort": CLASS}, {}, "ambiguous-columns"),
        ({"image": IMAGE, "label": datasets.List(NUMBER)}, {}, "no-labels"),
        ({"picture": TEXT, "label": CLASS}, {}, "no-images"),
        ({"image": IMAGE, "label": CLASS}, {"image": "label"}, "no-images"),
        ({"image": IMAGE, "label": CLASS}, {"label": "species"}, "no-labels"),
    ],
)
def test_columns_that_are_refused(features: dict[str, Any], options: dict[str, str], code: str):
    with pytest.raises(UserError) as caught:
        find_columns(features, "x", **options)
    assert caught.value.code == code


def test_columns_that_are_named():
    features = {"left": IMAGE, "right": IMAGE, "kind": CLASS, "sort": TEXT}
    assert find_columns(features, "x", image="right", label="sort") == ("right", "sort")


def test_labels(tmp_path: Path):
    listed = tmp_path / "classes.txt"
    listed.write_text("none\nant\nbee\n")
    assert class_table(CLASS, set(), None, "x") == (["b", "a"], {0: 0, 1: 1})
    assert class_table(NUMBER, {0, 2, -1, None}, None, "x") == (["0", "1", "2"], {0: 0, 2: 2})
    assert class_table(NUMBER, {0.0, 1.0, float("nan")}, None, "x") == (["0", "1"], {0.0: 0, 1.0: 1})
    assert class_table(NUMBER, {1, 2}, listed, "x") == (["none", "ant", "bee"], {1: 1, 2: 2})
    assert class_table(TEXT, {"10", "9"}, None, "x") == (["9", "10"], {"9": 0, "10": 1})
    for values in ({1, 2, 3}, {0, 0.5}, {0, 10**9}, {-2, 0}):
        with pytest.raises(UserError) as caught:
            class_table(NUMBER, values, None, "x")
        assert caught.value.code == "bad-label-file"


def test_a_local_data_set(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    numbers = datasets.ClassLabel(names=["0", "1", "10", "2"])
    features = datasets.Features({"mask": datasets.Image(), "image": datasets.Image(), "label": numbers})
    pictures = [{"bytes": picture(value), "path": None} for value in (10, 20, 30)]
    table = {"mask": [pictures[2]] * 3, "image": pictures, "label": [0, 1, 2]}
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "hub/train-00000-of-00001.parquet")
    source = open_source(f"hf:{tmp_path}/hub")
    assert source.image(0).getpixel((0, 0)) == (10, 10, 10)
    assert [getattr(note, "code", "") for note in source_notes(source)] == ["", "numbers-as-names", "empty-classes"]
    masks = open_source(f"hf:{tmp_path}/hub", options={"image": "mask"})
    assert masks.image(0).getpixel((0, 0)) == (30, 30, 30)
    streamed = open_source(f"hf:{tmp_path}/hub", streaming=True)
    read = [(item.label, decode().getpixel((0, 0))) for item, decode in read_items(streamed, 0, count_items(streamed))]
    assert read == [(0, (10, 10, 10)), (1, (20, 20, 20)), (2, (30, 30, 30))]
    with pytest.raises(UserError) as caught:
        open_source(f"hf:{tmp_path}/hub", options={"images": "mask"})
    assert caught.value.code == "option-does-not-apply"
