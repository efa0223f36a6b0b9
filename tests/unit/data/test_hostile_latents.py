"""Folders of latents from strangers, and damaged ones: refused with one message, and nothing outside is touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import encode, image_folder, refused

from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import read_manifest
from mpdit_core.data.tensor_file import map_tensors, write_tensors

SHARD = "shard-00001.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    return encode(image_folder(root / "images"), root / "latents").latents


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "latents")


def change(folder: Path, path: str, value: Any) -> None:
    """Sets one value of the manifest; `path` has dots, numbers for places in lists."""
    manifest = json.loads((folder / "manifest.json").read_text())
    node, *_ = [manifest]
    *tables, leaf = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in tables:
        node = node[part]
    node[leaf] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("shards.1.file", "../victim/shard-00001.safetensors"),
        ("shards.1.file", "/tmp/shard-00001.safetensors"),
        ("shards.1.file", "shard-00000.safetensors"),
        ("shards.1.file", "notes.txt"),
        ("shards.1.count", -1),
        ("shards.1.count", 3),
        ("shards.1.start", 0),
        ("shards.1.sum_mean", [float("nan")] * 3),
        ("shards.1.sum_mean", [0.0]),
        ("shards", []),
        ("count", -1),
        ("count", 14),
        ("plan.shard_size", 0),
        ("plan.batch_size", 0),
        ("plan.source.items", 10**18),
        ("plan.resolution", 2**40),
        ("plan.resolution", -8),
        ("plan.autoencoder.factor", 0),
        ("plan.autoencoder.factor", 3),
        ("plan.autoencoder.channels", 10**9),
        ("normalisation.std", [0.0, 1.0, 1.0]),
        ("normalisation.mean", [float("nan"), 0.0, 0.0]),
        ("normalisation.mean", [0.0]),
        ("plan", 3),
    ],
)
def test_numbers_and_names_that_cannot_be(folder: Path, path: str, value: Any):
    change(folder, path, value)
    with refused("damaged-file", "manifest.json"):
        LatentFolder(folder)


def test_labels_without_a_class(folder: Path):
    change(folder, "plan.class_names", [])
    with refused("damaged-file", "shard-"):
        _ = LatentFolder(folder).labels


def test_verify_touches_nothing_outside(whole: Path, folder: Path, tmp_path: Path):
    victim = tmp_path / "victim" / SHARD
    victim.parent.mkdir()
    victim.write_bytes(b"precious")
    change(folder, "shards.1.file", f"../victim/{SHARD}")
    with refused("damaged-file"):
        encode(whole.parent / "images", folder, verify=True)
    assert [(file.name, file.read_bytes()) for file in victim.parent.iterdir()] == [(SHARD, b"precious")]


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        text = json.dumps(change(header) or header, separators=(",", ":")).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return changed


def entry(name: str, **values: Any) -> Callable[[bytes], bytes]:
    return with_header(lambda header: header[name].update(values))


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-8],
    "longer": lambda data: data + bytes(8),
    "endless header": lambda data: (2**63).to_bytes(8, "little") + data[8:],
    "no header": lambda data: data[:8] + bytes(len(data) - 8),
    "deep header": lambda data: (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "a list": with_header(lambda header: [1]),
    "lying shape": entry("pixels", shape=[10**12, 3, 8, 8]),
    "negative shape": entry("pixels", shape=[-4, 3, 8, -8]),
    "fractional shape": entry("pixels", shape=[4.0, 3, 8, 8]),
    "other shape": entry("pixels", shape=[4, 3, 64, 1]),
    "other dtype": entry("labels", dtype="F64"),
    "other place": entry("labels", data_offsets=[8, 40]),
    "overlap": entry("pixels", data_offsets=[0, 768]),
    "beyond the file": entry("pixels", data_offsets=[32, 10**9]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_shards(folder: Path, case: str):
    data = HOSTILE[case]((folder / SHARD).read_bytes())
    (folder / SHARD).write_bytes(data)
    change(folder, "shards.1.bytes", max(1, len(data)))
    with refused("damaged-file", SHARD):
        LatentFolder(folder).shard(1)


def test_labels_that_no_class_has(folder: Path):
    tensors = {name: array.copy() for name, array in map_tensors(folder / SHARD).items()}
    tensors["labels"][2] = 2**40
    write_tensors(folder / SHARD, tensors)
    with refused("damaged-file", SHARD):
        LatentFolder(folder).batch(range(8))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with refused("damaged-file"):
        map_tensors(tmp_path / "pipe")


def test_an_empty_shard_is_read(tmp_path: Path):
    write_tensors(tmp_path / "s", {"labels": np.zeros(0, "<i8"), "pixels": np.zeros((0, 3, 8, 8), "u1")})
    assert map_tensors(tmp_path / "s")["pixels"].shape == (0, 3, 8, 8)


def test_flipped_bits_are_noticed_while_reading(folder: Path, monkeypatch: pytest.MonkeyPatch):
    data = bytearray((folder / SHARD).read_bytes())
    data[-5] ^= 1
    (folder / SHARD).write_bytes(data)
    latents = LatentFolder(folder)
    latents.batch(range(4))
    latents.hashes.wait()  # the first shard is whole
    latents.batch(range(8))
    with refused("damaged-file", SHARD):
        latents.hashes.wait()
    with refused("damaged-file", SHARD):
        latents.batch(range(4))
    monkeypatch.setenv("MPDIT_VERIFY", "off")
    unchecked = LatentFolder(folder)
    unchecked.batch(range(8))
    unchecked.hashes.wait()


def records(folder: Path) -> Path:
    """The folder as a killed encoding leaves it: plan and records in place of the manifest, and no last shard."""
    manifest, work = read_manifest(folder), folder / "encoding"
    work.mkdir()
    (work / "plan.json").write_text(manifest.plan.model_dump_json())
    for shard in manifest.shards[:-1]:
        (work / f"{shard.file.removesuffix('.safetensors')}.json").write_text(shard.model_dump_json())
    (folder / "manifest.json").unlink()
    (folder / manifest.shards[-1].file).unlink()
    return work


@pytest.mark.parametrize("name", ["plan.json", "shard-00001.json"])
@pytest.mark.parametrize("text", ["", "[" * 100_000, "3", "{}", '{"file": "../x"}', "\x00"])
def test_hostile_records_of_an_encoding(whole: Path, folder: Path, name: str, text: str):
    work = records(folder)
    (work / name).write_text(text)
    with refused("damaged-file", name):
        encode(whole.parent / "images", folder)


def test_a_record_of_another_shard(whole: Path, folder: Path):
    work = records(folder)
    shutil.copy(work / "shard-00000.json", work / "shard-00001.json")
    with refused("damaged-file", "shard-00001.json"):
        encode(whole.parent / "images", folder)
