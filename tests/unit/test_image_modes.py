"""Grey and transparent images keep their mode from the source to the PNGs of samples; metrics see RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import encode, refused
from PIL import Image
from sample_helpers import run_sample, run_view, write_model

from mpdit_core.data.autoencoders import as_rgb, load_autoencoder
from mpdit_core.data.images import LUMINANCE, Mode, prepare
from mpdit_core.data.latents import LatentFolder
from mpdit_core.evaluation import EvaluateOptions, evaluate
from mpdit_core.size import Size
from mpdit_core.testing import check_autoencoder

MODES: list[Mode] = ["L", "RGB", "RGBA"]


def image(mode: Mode, seed: int = 0) -> Image.Image:
    shape = (16, 16, len(mode)) if mode != "L" else (16, 16)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def pictures(folder: Path, mode: Mode) -> Path:
    """Twelve pictures in one folder."""
    folder.mkdir()
    for n in range(12):
        image(mode, n).save(folder / f"{n:02d}.png")
    return folder


def measured(what: Path, **more: Any) -> Any:
    """The record of eight images in the digits' features."""
    options = {"num_samples": 8, "features": "digits", "metrics": ("fid",), "device": "cpu", "num_steps": 2}
    options["out"] = Path(what).parent / "evals"
    return evaluate(EvaluateOptions(what=str(what), **options | more))


@pytest.mark.parametrize("mode", MODES)
def test_pixels_come_back_exactly(mode: Mode, tmp_path: Path):
    result = encode(pictures(tmp_path / "x", mode), tmp_path / "latents", mode=mode, resolution=16)
    assert result.latent_shape == (len(mode), 16, 16)
    assert (result.psnr, result.ssim) == (100, pytest.approx(1, abs=1e-12))
    latents = LatentFolder(result.latents)
    decoded = load_autoencoder(latents.spec.autoencoder).decode(latents.batch([3]).mean)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(decoded, np.asarray(image(mode, 3)).reshape(16, 16, -1))
    encode(tmp_path / "x", result.latents, mode=mode, resolution=16, verify=True)


@pytest.mark.parametrize("mode", MODES)
def test_samples_have_the_mode(mode: Mode, tmp_path: Path):
    result = encode(pictures(tmp_path / "x", mode), tmp_path / "latents", mode=mode, resolution=16)
    spec = LatentFolder(result.latents).spec
    model = write_model(tmp_path / "m", latents=spec, num_classes=0, channels=len(mode))
    plain = {"guidance_scale": 1.0, "num_steps": 2, "num_samples": 8}
    samples = run_sample(model, out=tmp_path / "png", **plain)
    with Image.open(samples.samples / "000000.png") as first, Image.open(samples.grid or "") as grid:
        assert (first.mode, grid.mode) == (mode, "RGB")
    run_sample(model, out=tmp_path / "npz", format="npz", **plain)
    assert np.load(tmp_path / "npz" / "samples.npz")["arr_0"].shape == (8, 16, 16, 3)
    assert run_view(model, out=tmp_path / "nearest", nearest="pixels").image.is_file()
    figures = {
        measured(what, out=tmp_path / "evals", batch_size=4).value("fid")
        for what in (model.path, tmp_path / "png", tmp_path / "npz")
    }
    assert len(figures) == 1


@pytest.mark.parametrize("mode", MODES)
def test_decoded_pixels_are_the_reference(mode: Mode, tmp_path: Path):
    """The reference is prepared as the latents were: the distance of the images to themselves is 0."""
    folder = encode(pictures(tmp_path / "x", "RGBA"), tmp_path / "latents", mode=mode, resolution=16).latents
    record = measured(folder, reference=str(folder), num_samples=12, out=tmp_path / "evals")
    assert record.value("fid") == pytest.approx(0, abs=1e-6)
    assert "white" in record.rules.colours


def test_the_source_is_the_reference_in_the_same_mode_as_its_latents(tmp_path: Path):
    """If the latents are gone, the images that they were made from are the reference."""
    folder = encode(pictures(tmp_path / "x", "RGB"), tmp_path / "latents", mode="L", resolution=16).latents
    model = write_model(tmp_path / "m", latents=LatentFolder(folder).spec, num_classes=0, channels=1)
    beside = measured(model.path, batch_size=4)
    folder.rename(tmp_path / "elsewhere")
    alone = measured(model.path, batch_size=4)
    assert (beside.reference.kind, alone.reference.kind) == ("data set", "folder")
    assert alone.metrics == beside.metrics


def test_grey_is_measured_as_rgb(tmp_path: Path):
    grey = pictures(tmp_path / "grey", "L")
    (tmp_path / "rgb").mkdir()
    for path in grey.glob("*.png"):
        Image.open(path).convert("RGB").save(tmp_path / "rgb" / path.name)
    figures = [
        measured(folder, reference=str(tmp_path / "rgb"), out=tmp_path).value("fid")
        for folder in (grey, tmp_path / "rgb")
    ]
    assert figures[0] == figures[1]


def test_transparency_is_laid_on_white():
    glass = torch.tensor([255, 0, 0, 0], dtype=torch.uint8).view(1, 4, 1, 1)
    half = torch.tensor([255, 0, 0, 128], dtype=torch.uint8).view(1, 4, 1, 1)
    assert as_rgb(glass).flatten().tolist() == [255, 255, 255]
    assert as_rgb(half).flatten().tolist() == [255, 127, 127]


def test_every_picture_has_every_mode():
    colours = image("RGB")
    grey = prepare(colours, Size.square(16), "L")
    assert np.array_equal(grey[..., 0], np.rint((np.asarray(colours) * LUMINANCE).sum(axis=-1)))
    assert (prepare(colours, Size.square(16), "RGBA")[..., 3] == 255).all()
    assert np.array_equal(prepare(image("RGBA"), Size.square(16), "RGBA"), np.asarray(image("RGBA")))
    deep = Image.fromarray(np.full((16, 16), 65535, dtype=np.uint16))
    assert prepare(deep, Size.square(16), "RGBA")[0, 0].tolist() == [255] * 4


def test_modes_of_autoencoders(tmp_path: Path):
    for mode in MODES:
        autoencoder = load_autoencoder("pixels", options={"mode": mode})
        check_autoencoder(autoencoder.plugin)
        assert autoencoder.spec.mode == mode
    assert load_autoencoder("pixels", options={"mode": "RGB"}).spec == load_autoencoder("pixels").spec
    assert load_autoencoder("pixels-gray").spec.mode == "L"
    folder = pictures(tmp_path / "x", "RGB")
    for name, code in (("dct", "unknown-key"), ("pixels-gray", "invalid-value")):
        with refused(code):
            encode(folder, tmp_path / name, autoencoder=name, mode="RGB")
