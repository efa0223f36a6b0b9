"""Folders as DiT-, EDM2- (REPA-) and LightningDiT-style scripts write them, taken over: what is stored and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import refused, save_autoencoder, shard_hashes
from safetensors.torch import save_file

from mpdit_cli.commands.encode_latents import summary
from mpdit_core.data.autoencoders import load_autoencoder
from mpdit_core.data.latents import LatentFolder
from mpdit_core.encoding import EncodeOptions, EncodeResult, encode_latents
from mpdit_core.reporting import Event, Note
from mpdit_core.size import Size

COUNT, SCALE = 12, 0.18215
LABELS = [n % 3 for n in range(COUNT)]


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("vae"))


def raw(channels: int = 4) -> torch.Tensor:
    """Raw latents [12, channels, 4, 4], as of images of 32 pixels."""
    return 5 * torch.randn(COUNT, channels, 4, 4, generator=torch.Generator().manual_seed(0))


def take(folder: Path, out: Path, vae: Path, **more: Any) -> EncodeResult:
    options = {"from_latents": folder, "autoencoder": str(vae), "latents_scale": 1.0, "shard_size": 5, "device": "cpu"}
    report = more.pop("report", lambda event: None)
    return encode_latents(EncodeOptions(**{**options, "out": out, **more}), report=report)


def dit(folder: Path, latents: torch.Tensor) -> Path:
    """`imagenet256_features/7.npy` [1, C, h, w] of scaled draws beside `imagenet256_labels/7.npy` [1]."""
    for part in ("features", "labels"):
        (folder / f"imagenet256_{part}").mkdir(parents=True)
    for n in range(COUNT):
        np.save(folder / f"imagenet256_features/{n}.npy", (latents[n : n + 1] * SCALE).numpy())
        np.save(folder / f"imagenet256_labels/{n}.npy", np.array([LABELS[n]]))
    return folder


def edm2(folder: Path, moments: torch.Tensor) -> Path:
    """`dataset.json` and `00000/img-mean-std-00000007.npy` [2C, h, w], not scaled, in another order than by name."""
    (folder / "00000").mkdir(parents=True)
    names = [f"00000/img-mean-std-{n:08d}.npy" for n in range(COUNT)]
    for n, name in enumerate(names):
        np.save(folder / name, moments[n].numpy())
    rows = [[name, label] for name, label in zip(names, LABELS, strict=True)]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows[::-1]}))
    return folder


def lightning(folder: Path, latents: torch.Tensor) -> Path:
    """`latents_rank00_shard000.safetensors`, 7 and 5 latents, and their mirror images."""
    folder.mkdir()
    for n, rows in enumerate((slice(0, 7), slice(7, COUNT))):
        part, labels = latents[rows].contiguous(), torch.tensor(LABELS[rows])
        tensors = {"latents": part, "latents_flip": part.flip(-1).contiguous(), "labels": labels}
        save_file(tensors, folder / f"latents_rank00_shard{n:03d}.safetensors")
    save_file({"mean": torch.zeros(1, 4, 1, 1)}, folder / "latents_stats.safetensors")  # no latents: left alone
    return folder


def test_scaled_draws_one_file_each(vae: Path, tmp_path: Path):
    events: list[Event] = []
    made = take(dit(tmp_path / "dit", raw()), tmp_path / "out", vae, latents_scale=SCALE, report=events.append)
    assert (made.count, made.classes, made.resolution, made.stores, made.flips) == (12, 3, Size(32, 32), "mean", "none")
    batch = LatentFolder(made.latents).batch(range(COUNT))
    assert torch.allclose(batch.mean, raw(), atol=2e-2)  # float16
    assert batch.std is None
    assert batch.labels.tolist() == LABELS
    assert any("0.18215" in event.text for event in events if isinstance(event, Note))
    assert "mpdit train" in str(summary(made).next_command)
    assert (made.latents / "contact-sheet.png").exists()


def test_means_and_standard_deviations_with_a_list_of_labels(vae: Path, tmp_path: Path):
    moments = torch.cat([raw(), raw().abs() / 50], dim=1)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    folder = edm2(tmp_path / "edm2", moments)
    made = take(folder, tmp_path / "out", vae, classes=tmp_path / "names.txt")
    latents = LatentFolder(made.latents)
    batch = latents.batch(range(COUNT))
    assert made.stores == "mean+std"
    assert batch.std is not None
    assert torch.allclose(torch.cat([batch.mean, batch.std], dim=1), moments.flip(0), atol=2e-2)
    assert (batch.labels.tolist(), latents.spec.class_names) == (LABELS[::-1], ("ant", "bee", "cat", "dog"))


def test_logarithms_of_variances_are_told_by_their_sign(vae: Path, tmp_path: Path):
    moments = torch.cat([raw(), torch.full((COUNT, 4, 4, 4), -6.0)], dim=1)
    made = take(edm2(tmp_path / "moments", moments), tmp_path / "out", vae)
    std = LatentFolder(made.latents).batch([0]).std
    assert std is not None
    assert torch.allclose(std, torch.tensor(np.exp(-3.0), dtype=torch.float32), rtol=1e-3)


def test_shards_of_rectangles_with_mirror_images(vae: Path, tmp_path: Path):
    latents = raw()[:, :, :2]
    made = take(lightning(tmp_path / "lightning", latents), tmp_path / "out", vae)
    folder = LatentFolder(made.latents)
    assert made.flips == "stored"
    assert torch.allclose(
        folder.batch([3, 9], flip=[True, False]).mean, torch.stack([latents[3].flip(-1), latents[9]]), atol=2e-2
    )
    assert folder.labels.tolist() == LABELS
    assert load_autoencoder(folder.spec.autoencoder).decode(folder.batch([0]).mean).shape == (1, 3, 16, 32)


def test_it_resumes_and_is_verified(vae: Path, tmp_path: Path):
    folder = dit(tmp_path / "dit", raw())
    made = take(folder, tmp_path / "out", vae)
    before = shard_hashes(made.latents)
    assert take(folder, tmp_path / "out", vae).encoded_now == 0
    (made.latents / "shard-00001.safetensors").unlink()
    assert take(folder, tmp_path / "out", vae).encoded_now == 5
    take(folder, tmp_path / "out", vae, verify=True)
    assert shard_hashes(made.latents) == before
    with refused("settings-changed", "latents_scale"):
        take(folder, tmp_path / "out", vae, latents_scale=0.5)


@pytest.mark.parametrize("later", [{"latents": raw()}, {"latents": raw()[..., :2], "latents_flip": raw()[..., :2]}])
def test_later_files_of_another_kind_are_refused(vae: Path, tmp_path: Path, monkeypatch, later):
    """Seen only when they are read: the format is that of the first latents."""
    monkeypatch.setattr("mpdit_core.encoding.foreign_latents.FIRST_LATENTS", 5)
    folder = lightning(tmp_path / "lightning", raw())
    tensors = {name: tensor[:5].contiguous() for name, tensor in later.items()} | {
        "labels": torch.zeros(5, dtype=torch.int64)
    }
    save_file(tensors, folder / "latents_rank00_shard002.safetensors")
    with refused("damaged-file", "12 to 17"):
        take(folder, tmp_path / "out", vae, shard_size=12)


def test_refusals(vae: Path, tmp_path: Path):
    folder, out = dit(tmp_path / "dit", raw()), tmp_path / "out"
    with refused("scale-not-known", "standard deviation"):
        take(folder, out, vae, latents_scale=None)
    with refused("other-shape", "4 × 4 × 4"):
        take(folder, out, vae, autoencoder="dct")
    with refused("option-does-not-apply", "flip"):
        take(folder, out, vae, flip=True)
    with refused("no-source"):
        take(folder, out, vae, source=str(tmp_path))
    with refused("no-source"):
        encode_latents(EncodeOptions(out=out))
    with refused("no-latents"):
        take(tmp_path, out, vae)
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "empty/0.npz", latents=np.zeros((0, 4, 4, 4), np.float32), labels=np.zeros(0, np.int64))
    with refused("no-latents"):
        take(tmp_path / "empty", out, vae)
    (tmp_path / "one.txt").write_text("ant\n")
    with refused("no-such-class"):
        take(folder, out, vae, classes=tmp_path / "one.txt")
    np.save(folder / "imagenet256_features/3.npy", np.zeros((1, 4, 8, 8), np.float32))
    with refused("damaged-file"):
        take(folder, out, vae)
    (folder / "imagenet256_labels/3.npy").unlink()
    with refused("no-labels"):
        take(folder, out, vae)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "dataset.json").write_text(json.dumps({"labels": [["../dit/imagenet256_features/0.npy", 0]]}))
    with refused("damaged-file", "outside"):
        take(outside, out, vae)
    (outside / "dataset.json").write_text(json.dumps({"labels": [["0.npy", 10**12]]}))
    with refused("damaged-file", "0 to 99999"):  # one name per label would fill the memory
        take(outside, out, vae)
    np.save(outside / "0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (outside / "dataset.json").write_text(json.dumps({"labels": [["0.npy", 0]]}))
    with refused("damaged-file"):  # a pickle is not read
        take(outside, out, vae)
