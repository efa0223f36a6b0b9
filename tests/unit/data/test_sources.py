"""Which images and labels are found: layouts, archives, label files, class lists, the Hub; notes and refusals."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from data_helpers import encode, hub_data_set, image_folder, photo, refused, shard_hashes

from mpdit_core.api import Dataset
from mpdit_core.data.sources import open_source, source_notes
from mpdit_core.data.tensor_file import map_tensors
from mpdit_core.reporting import Note, Warning


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def contents(source: Dataset) -> list[tuple[str, bytes]]:
    """Class and pixels of every image, in order."""
    names = source.class_names()
    return [(names[item.label], source.image(n).tobytes()) for n, item in enumerate(source.items())]


def labels(source: Dataset) -> list[int]:
    return [item.label for item in source.items()]


def test_archives_and_layouts(images: Path, tmp_path: Path):
    expected = contents(open_source(str(images)))
    nested = tmp_path / "nested"
    nested.mkdir()
    for name in ("ant", "bee", "cat"):  # as ImageNet's archive: an archive per class
        with tarfile.open(nested / f"{name}.tar", "w") as archive:
            for path in sorted((images / name).iterdir()):
                archive.add(path, arcname=path.name)
    with tarfile.open(tmp_path / "of_tars.tar", "w") as archive:
        archive.add(nested, arcname=".")
    deep = tmp_path / "deep/ILSVRC/Data/train"
    shutil.copytree(images, deep)
    shutil.copytree(images / "ant", tmp_path / "deep/ILSVRC/Data/val/ant")
    (deep / "bee/more").mkdir()
    (deep / "bee/3.png").rename(deep / "bee/more/3.png")
    (deep / "bee/4.png").rename(deep / "bee/more/4.png")
    for source in (tmp_path / "of_tars.tar", tmp_path / "deep"):
        assert contents(open_source(str(source))) == expected, source
    assert set(labels(open_source(str(tmp_path / "deep"), split="val"))) == {0}


def test_flat_validation_and_class_order(images: Path, tmp_path: Path):
    flat = tmp_path / "val"
    flat.mkdir()
    for n in range(6):
        photo(n).save(flat / f"val_{n:02d}.png")
    assert (open_source(str(flat)).class_names(), labels(open_source(str(flat)))) == ([], [0] * 6)
    (flat / "val.txt").write_text("".join(f"val_{n:02d}.png {n % 3}\n" for n in range(6)))
    assert labels(open_source(str(flat))) == [0, 1, 2, 0, 1, 2]
    kaggle = tmp_path / "LOC_val_solution.csv"
    rows = "".join(f"val_{n:02d},{['n02', 'n01'][n % 2]} 85 1 499 272\n" for n in range(6))
    kaggle.write_text("ImageId,PredictionString\n" + rows)
    solved = open_source(str(flat), labels=kaggle)
    assert (solved.class_names(), labels(solved)) == (["n01", "n02"], [1, 0] * 3)
    order = tmp_path / "classes.txt"
    order.write_text("dog, the friend\ncat, the master\nbee\nant\n")
    assert labels(open_source(str(images), classes=order)) == [3] * 5 + [2] * 5 + [1] * 5
    order.write_text("cat\nant\n")
    with refused("bad-class-list", "bee"):
        open_source(str(images), classes=order).items()


def test_notes_say_where_images_were_found(images: Path, tmp_path: Path):
    assert source_notes(open_source(str(images))) == []
    (tmp_path / "above").mkdir()
    images.rename(tmp_path / "above/train")
    order = tmp_path / "classes.txt"
    order.write_text("ant\nbee\ncat\ndog\n")
    note, warning = source_notes(open_source(str(tmp_path / "above"), classes=order))
    assert isinstance(note, Note)
    assert isinstance(warning, Warning)
    assert warning.code == "empty-classes"
    shutil.rmtree(tmp_path / "above/train/bee")
    shutil.rmtree(tmp_path / "above/train/cat")
    codes = [note.code for note in source_notes(open_source(str(tmp_path / "above"))) if isinstance(note, Warning)]
    assert codes == ["one-class"]


def test_refused_sources(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with refused("option-does-not-apply", "streaming"):
        open_source(str(images), streaming=True)
    with refused("no-such-file"):
        open_source(str(images), classes=tmp_path / "none.txt")
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    with refused("ambiguous-source"):
        open_source("digits")
    with refused("no-such-split"):
        monkeypatch.chdir(images)
        open_source("digits", split="val")


def test_an_image_that_is_gone_is_faulty(images: Path):
    source = open_source(str(images))
    source.items()
    (images / "ant/1.png").unlink()
    with refused("faulty-image", "1.png"):
        source.image(1)


def test_hub_data_sets(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = hub_data_set(images, tmp_path, monkeypatch)
    plain = encode(images, tmp_path / "plain")
    for name, streaming in (("stored", False), ("streamed", True)):
        assert encode(source, tmp_path / name, streaming=streaming).classes == 3
        assert shard_hashes(tmp_path / name) == shard_hashes(plain.latents)
    assert open_source(source).class_names() == ["ant", "bee", "cat"]
    assert map_tensors(tmp_path / "stored/shard-00000.safetensors")["labels"].tolist() == [0] * 4
    with refused("no-such-split", "val"):
        open_source(source, split="val").items()
