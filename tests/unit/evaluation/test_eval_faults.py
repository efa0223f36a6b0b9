"""Evaluations of damaged and hostile files: one message, exit 2, nothing counted wrongly."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_helpers import enter_folder, measured, options, pictures, warnings_of
from PIL import Image
from safetensors.torch import load_file, save_file
from sample_helpers import code_of, write_model

from mpdit_core.encoding import EncodeOptions, encode_latents
from mpdit_core.errors import UserError
from mpdit_core.evaluation import (
    EvaluationRecord,
    compare_records,
    evaluate,
    evaluate_sweep,
    make_reference,
    read_records,
)
from mpdit_core.evaluation.images import open_images
from mpdit_core.metrics.features import features_name, load_extractor
from mpdit_core.reporting import Event, Note, Warning
from mpdit_core.runtime.checked_tensors import read_checked, write_checked
from mpdit_core.runtime.npz import map_member
from mpdit_core.size import Size


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    return enter_folder(tmp_path, monkeypatch)


# npz


def npy(shape: tuple, kind: str = "|u1", data: bytes = b"") -> bytes:
    """A .npy file whose header says anything."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def write_npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile("x.npz", "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return Path("x.npz")


LYING = [
    npy((10**6, 16, 16, 3)), npy((-4, 16, 16, 3)), npy((10**18, 10**18, 1, 3)), npy((2, 16, 16, 3), "|O", b"x" * 2000),
    b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"junk" * 999, npy((4,), "<f8"),
]  # fmt: skip


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("data", LYING)
def test_headers_that_lie_are_refused(here, data, compression):
    path = write_npz({"arr_0": data}, compression)
    assert code_of(open_images, path) == "damaged-file"
    assert code_of(evaluate, options(str(path))) == "damaged-file"
    assert code_of(evaluate, options(reference=str(path))) == "damaged-file"


def test_damaged_archives_are_refused(here):
    whole = Path("a.npz").read_bytes()
    for number, data in enumerate([b"", b"PK", whole[:3000], whole[:-30], b"x" * 500, whole[:100] + whole[400:]]):
        Path("y.npz").write_bytes(data)
        assert code_of(open_images, Path("y.npz")) == "damaged-file", number
    np.save("single.npz", pictures(4))
    Path("single.npz.npy").rename("y.npz")
    assert code_of(open_images, Path("y.npz")) == "damaged-file"
    Path("folder.npz").mkdir()
    assert code_of(map_member, Path("folder.npz"), "arr_0") == "no-such-file"
    assert code_of(map_member, Path("a.npz"), "arr_9") == "damaged-file"


def test_a_zip_bomb_is_refused_before_it_is_unpacked(here, monkeypatch):
    np.savez_compressed("z.npz", arr_0=np.zeros((2000, 16, 16, 3), np.uint8))
    assert open_images(Path("z.npz")).count == 2000
    monkeypatch.setattr("mpdit_core.runtime.npz.shutil.disk_usage", lambda _: type("U", (), {"free": 10**6}))
    assert code_of(open_images, Path("z.npz")) == "disk-full"


@pytest.mark.parametrize(
    "labels", [np.arange(3), np.array([None] * 12), np.arange(12) / 2, np.zeros((12, 10), np.int64)]
)
def test_what_is_no_label_is_none(here, labels):
    np.savez("x.npz", arr_0=pictures(12), arr_1=labels)
    if labels.dtype == object:
        assert code_of(open_images, Path("x.npz")) == "damaged-file"
    else:
        assert open_images(Path("x.npz")).labels is None


@pytest.mark.parametrize(
    "statistics",
    [
        {"mu": np.zeros(8), "sigma": np.eye(7)},
        {"mu": np.zeros((8, 8)), "sigma": np.eye(8)},
        {"mu": np.full(8, np.nan), "sigma": np.eye(8)},
        {"mu": np.zeros(8)},
        {"mu": np.array(["a"] * 8), "sigma": np.eye(8)},
    ],
)
def test_statistics_that_are_none_are_refused(here, statistics):
    features = features_name(load_extractor("digits", device=torch.device("cpu")))
    np.savez("x.npz", **statistics, features=features)
    assert code_of(evaluate, options(reference="x.npz")) in ("damaged-file", "no-images")


# Stored tensors: progress and references


def test_one_changed_bit_is_seen(tmp_path):
    path = tmp_path / "x.safetensors"
    write_checked(path, {"a": torch.arange(100.0)}, {"key": "k"})
    assert read_checked(path)[1] == {"key": "k"}
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    for damaged in (bytes(data), bytes(data[:-3]), b"", b"\xff" * 40, data[:9]):
        path.write_bytes(damaged)
        assert code_of(read_checked, path) == "damaged-file"
    save_file({"a": torch.arange(3)}, path)
    assert code_of(read_checked, path) == "damaged-file"


def test_a_damaged_reference_is_measured_again_and_said(here):
    first = measured()
    (stored,) = Path("cache/references").glob("*.safetensors")
    tensors = load_file(stored)
    for damage in (lambda: stored.write_bytes(stored.read_bytes()[:-9]), lambda: save_file(tensors, stored)):
        damage()
        events: list[Event] = []
        again = evaluate(options(force=True), report=events.append)
        assert again.metrics == first.metrics
        assert "damaged-reference" in warnings_of(events)


def test_damaged_progress_is_not_taken_up(here):
    first = measured(out=Path("out"))
    first.path.unlink()
    partial = first.path.with_suffix(".partial")
    partial.mkdir()
    for name in (
        "state.safetensors",
        "features-000000-0-abc.safetensors",
        "features-x.safetensors",
        "features--.safetensors",
    ):
        (partial / name).write_bytes(b"\x08" + b"\0" * 30)
    assert measured(out=Path("out")).metrics == first.metrics


def test_a_damaged_record_is_measured_again(here):
    first = measured()
    for damage in ("", "[]", "{", "[" * 10**5, json.dumps(json.loads(first.path.read_text()) | {"metrics": {}})):
        first.path.write_text(damage)
        assert code_of(EvaluationRecord.read, first.path) in ("damaged-file", "invalid-value")
        assert measured().metrics == first.metrics


def test_damaged_tables_and_records_of_a_sweep_are_replaced(here):
    """A table is written from the records and never read; of the records, only the damaged one is measured again."""
    write_model(here / "m")
    wanted = options("m", "digits", num_samples=4, metrics=("fid",), sweep=("num_steps=1,2",))
    first = evaluate_sweep(wanted)
    whole, intact = first.rows[0].record, first.rows[0].record.read_bytes()
    table, record = first.path.read_text(), first.rows[1].record
    hostile = json.dumps({"format": 3, "metrics": {"frechet_distance": "file.py:Evil"}, "rows": "../../x"})
    for damage in ("", table[:-40], hostile):
        first.path.write_text(damage)
        record.write_text(damage)
        for path in (first.path, record):
            assert code_of(compare_records, whole, path) in ("damaged-file", "invalid-value", "unknown-key")
        events: list[Event] = []
        assert [left.path for left in read_records(whole.parent, report=events.append)] == [whole]
        assert warnings_of(events) == ["damaged-record"]
        events.clear()
        assert evaluate_sweep(wanted, report=events.append).rows == first.rows
        assert warnings_of(events) == ["few-samples", "damaged-record"]
        assert first.path.read_text() == table
        assert whole.read_bytes() == intact


def test_a_reference_beside_read_only_latents_goes_to_the_cache(here, monkeypatch):
    from mpdit_core.evaluation import reference

    unused: Any = None
    plan = reference.plan_reference("b.npz", resolution=Size.square(16), extractor=unused)
    Path("latents").mkdir()
    own = dataclasses.replace(plan, latents_folder=Path("latents").absolute())
    monkeypatch.setattr("mpdit_core.evaluation.job.plan_reference", lambda *_given, **_more: own)
    monkeypatch.setattr(reference, "_may_write_in", lambda folder: folder.name != "latents")
    measured()
    assert not list(Path("latents").iterdir())
    assert list(Path("cache/references").glob("*.safetensors"))


# Folders of images


def write_classes(*suffixes: str, per_class: int = 5) -> None:
    for label, suffix in enumerate(suffixes):
        Path(f"set/{label}").mkdir(parents=True)
        for n in range(per_class):
            Image.fromarray(pictures(1, seed=10 * label + n)[0]).save(f"set/{label}/{n}{suffix}")


def test_every_format_counts_and_what_does_not_is_said(here):
    write_classes(".png", ".tif", ".bmp", ".webp")
    Path("set/0/x.heic").write_bytes(b"x")
    events: list[Event] = []
    record = evaluate(options("set"), report=events.append)
    assert record.count == 20
    assert "files-left-out" in warnings_of(events)
    events.clear()
    assert evaluate(options(reference="set", num_samples=10), report=events.append).reference.count == 20
    assert any(isinstance(e, Warning) and e.code == "files-left-out" and "reference" in e.text for e in events)


def test_a_part_of_a_folder_by_class_has_all_classes(here):
    write_classes(".png", ".png", ".png", ".png")
    events: list[Event] = []
    record = evaluate(options("set", num_samples=8), report=events.append)
    assert record.samples
    assert "8 of 20 at even distances" in record.samples.order
    assert any(isinstance(event, Note) and "8 of 20" in event.text for event in events)
    np.savez("sorted.npz", arr_0=pictures(20), arr_1=np.arange(20) // 5)
    by_class = evaluate(options("sorted.npz", num_samples=8)).samples
    assert by_class
    assert "8 of 20" in by_class.order
    encode_latents(EncodeOptions(source="set", out=Path("lat"), resolution=Size.square(16), autoencoder="pixels"))
    decoded = evaluate(options("lat", num_samples=8)).samples
    assert decoded
    assert "8 of 20" in decoded.order
    assert "of" not in (evaluate(options("b.npz", num_samples=8)).samples or record.samples).order


@pytest.mark.parametrize("mode", ["LA", "P", "1", "CMYK"])
def test_samples_that_are_not_rgb_or_grey_are_refused(here, mode):
    Path("set").mkdir()
    for n in range(6):
        Image.new(mode, (16, 16)).save(f"set/{n}.{'tif' if mode == 'CMYK' else 'png'}")
    assert code_of(evaluate, options("set")) == "not-rgb"


def test_grey_samples_count_as_rgb_and_torn_ones_are_named(here):
    Path("set").mkdir()
    for n in (2, 10, 1):
        Image.new("L", (16, 16), n).save(f"set/{n}.png")
    images = open_images(Path("set"))
    assert images.batch([0, 1, 2])[:, 0, 0, 0].tolist() == [1, 2, 10]
    Path("set/2.png").write_bytes(Path("set/2.png").read_bytes()[:45])
    with pytest.raises(UserError, match=r"2\.png"):
        images.batch([1])


def test_names_may_hold_numbers_of_any_length(here):
    with tarfile.open("set.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, grey in (("1" + "0" * 5000, 3), ("010", 2), ("2", 1)):
            file = io.BytesIO()
            Image.new("L", (16, 16), grey).save(file, "PNG")
            member = tarfile.TarInfo(f"{name}.png")
            member.size = file.tell()
            file.seek(0)
            archive.addfile(member, file)
    assert open_images(Path("set.tar")).batch([0, 1, 2])[:, 0, 0, 0].tolist() == [1, 2, 3]


# Options


def test_options_without_effect_are_said(here):
    def said(job, wanted):
        events: list[Event] = []
        job(wanted, report=events.append)
        return [e.text for e in events if isinstance(e, Warning) and e.code == "option-without-effect"]

    (text,) = said(evaluate, options(seed=3, guidance_scale=2.0, keep_samples=True))
    assert text.startswith("guidance_scale, seed, keep_samples")
    assert len(said(evaluate, options(metrics=("is",), bootstrap=5, half_distances=True, resolution=8))) == 3
    assert said(evaluate, options(out=Path("other"))) == []
    assert said(make_reference, options(make_reference=Path("r.npz"), reference=None, num_samples=4)) != []
