"""What encoding says of decoded latents, and rFID as eval-fid measures it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_helpers import encode, image_folder
from eval_helpers import measured

from mpdit_cli.commands.encode_latents import summary
from mpdit_core.metrics.features import Inception
from mpdit_core.metrics.similarity import MAX_PSNR
from mpdit_core.reporting import Event, Progress


def test_encoding_ends_with_the_figures_of_decoded_latents(tmp_path: Path):
    images = image_folder(tmp_path / "images")
    result = encode(images, tmp_path / "out", autoencoder="dct", resolution=16, reconstruction_images=9)
    kept = json.loads((tmp_path / "out/reconstruction.json").read_text())
    assert kept == {"images": 9, "psnr": result.psnr, "ssim": result.ssim}
    assert result.psnr is not None
    assert 5 < result.psnr < 20  # of noise, the low frequencies alone
    assert "SSIM" in summary(result).rows["reconstruction"]
    again = encode(images, tmp_path / "out", autoencoder="dct", resolution=16, reconstruction_images=9)
    assert (again.encoded_now, again.psnr) == (0, result.psnr)
    more = encode(images, tmp_path / "out", autoencoder="dct", resolution=16)
    assert json.loads((tmp_path / "out/reconstruction.json").read_text())["images"] == 15
    assert more.psnr != result.psnr


def test_pixels_come_back_exactly(tmp_path: Path):
    """Only those on the contact sheet are decoded to see it."""
    result = encode(image_folder(tmp_path / "images"), tmp_path / "out")
    assert json.loads((tmp_path / "out/reconstruction.json").read_text()) == {"images": 8, "psnr": 100, "ssim": 1}
    assert (result.psnr, result.ssim) == (MAX_PSNR, 1)
    assert summary(result).rows["reconstruction"] == "exact"
    off = encode(tmp_path / "images", tmp_path / "off", reconstruction_images=0)
    assert (off.psnr, off.ssim) == (None, None)
    assert (tmp_path / "off/contact-sheet.png").exists()


def test_images_are_decoded_in_batches(tmp_path: Path):
    events: list[Event] = []
    images = image_folder(tmp_path / "images", each=7)
    options = {"autoencoder": "dct", "resolution": 16, "reconstruction_images": 20}
    encode(images, tmp_path / "out", report=events.append, **options)
    assert [event.done for event in events if isinstance(event, Progress) and event.task == "decode"] == [16, 20]


def test_a_folder_of_latents_is_evaluated_as_what_it_decodes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MPDIT_CACHE", str(tmp_path / "cache"))
    images = image_folder(tmp_path / "images")
    exact = encode(images, tmp_path / "exact", resolution=16).latents
    coarse = encode(images, tmp_path / "coarse", resolution=16, autoencoder="dct").latents
    common = {"out": tmp_path / "evals", "metrics": ("fid",)}
    figures = [measured(str(path), None, **common).metrics["frechet_distance"] for path in (exact, coarse)]
    assert figures[0] == pytest.approx(0, abs=1e-6)
    assert figures[1] != pytest.approx(0, abs=1e-3)
    assert measured(str(coarse), str(exact), num_samples=6, **common).count == 6


def test_rfid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inception_weights: Path):
    """With random weights for Inception, taken for the published ones here."""
    place = tmp_path / "torch/hub/checkpoints" / inception_weights.name
    place.parent.mkdir(parents=True)
    place.symlink_to(inception_weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(Inception, "is_published", True)
    images = image_folder(tmp_path / "images", each=2)
    result = encode(images, tmp_path / "out", reconstruction_fid=True)
    assert result.rfid == pytest.approx(0, abs=1e-3)  # pixels come back exactly
    assert len(list((tmp_path / "out/evals").glob("*.json"))) == 1
    assert "rFID" in summary(result).rows["reconstruction"]
    assert encode(images, tmp_path / "out", reconstruction_fid=True).rfid == result.rfid
