"""Images of 16 × 24 pixels in all commands: no step exchanges height and width, or assumes that they are equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import refused
from latents_fixture import make_images
from PIL import Image
from train_helpers import options

from mpdit_core.encoding import EncodeOptions, EncodeResult, encode_latents
from mpdit_core.evaluation import EvaluateOptions, evaluate, make_reference
from mpdit_core.evaluation.images import folder_images
from mpdit_core.interop import ExportOptions, export_model
from mpdit_core.interop.pipeline import MPDiTPipeline
from mpdit_core.models.model_folder import open_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.profiling import ProfileOptions, profile_flops
from mpdit_core.reporting import silent
from mpdit_core.sampling import Generator, SampleOptions, sample
from mpdit_core.sampling.options import SampleResult, ViewResult
from mpdit_core.settings import parse_assignments
from mpdit_core.size import Size
from mpdit_core.training import TrainOptions, TrainResult, train
from mpdit_core.training.setup import plan_run
from mpdit_core.workspace import ListOptions, list_workspace

WIDE = Size(16, 24)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """32 colourful images of 24 × 24 pixels, four classes."""
    return make_images(tmp_path_factory.mktemp("rectangles") / "images", side=24)


@pytest.fixture(scope="module")
def encoded(images) -> EncodeResult:
    out = images.parent / "latents" / "wide"
    return encode_latents(
        EncodeOptions(source=str(images), resolution=WIDE, autoencoder="pixels-gray", out=out, device="cpu")
    )


@pytest.fixture(scope="module")
def run(encoded) -> Path:
    """Four steps of the preset `tiny`, with a preview."""
    where = encoded.latents.parent.parent / "run"
    train(options(encoded.latents, where, "preview.every=4", steps=4))
    return where


def test_encoding(encoded):
    assert (encoded.resolution, encoded.latent_shape, encoded.ssim) == (WIDE, (1, 16, 24), 1)
    assert encoded.model_dump()["resolution"] == "16x24"
    assert json.loads((encoded.latents / "manifest.json").read_text())["plan"]["resolution"] == "16x24"
    assert Image.open(encoded.latents / "contact-sheet.png").size > (24, 16)


def test_training_takes_the_size_from_its_latents(encoded, run):
    config = open_model(run).config
    assert (config.resolution, config.model.input_size) == (WIDE, WIDE)
    assert RunFolder(run).previews()
    again = plan_run(options(encoded.latents, run, "preview.every=4", steps=6), report=silent)
    assert again.resumes
    assert again.config.resolution == WIDE


def test_a_preset_is_proposed_for_the_only_latents(encoded, tmp_path):
    unnamed = TrainOptions(latents_root=encoded.latents.parent, runs_root=tmp_path, device="cpu")
    config = plan_run(unnamed, report=silent).config
    assert (config.preset, config.model.input_size) == ("s-32", WIDE)


def test_a_resolution_that_the_user_gave_is_not_changed(encoded, tmp_path):
    with refused("wrong-resolution", "16x24"):
        plan_run(options(encoded.latents, tmp_path / "run", "resolution=16"), report=silent)
    with refused("wrong-resolution", "24x16"):
        plan_run(options(encoded.latents, tmp_path / "run", "resolution=24x16"), report=silent)


def test_a_square_model_is_fine_tuned_to_rectangles(latents, encoded, tmp_path):
    train(options(latents, tmp_path / "square", steps=1))
    result = train(options(encoded.latents, tmp_path / "wide", steps=1, init_from=str(tmp_path / "square")))
    assert isinstance(result, TrainResult)
    assert open_model(result.run).config.model.input_size == WIDE


@pytest.mark.parametrize("form", ["png", "npz", "latents"])
def test_samples_and_their_evaluation(run, encoded, tmp_path, form):
    out = tmp_path / "set"
    result = sample(SampleOptions(model=str(run), num_samples=6, num_steps=2, format=form, out=out, device="cpu"))
    if form == "npz":
        assert isinstance(result, SampleResult)
        assert result.samples
        assert np.load(result.samples)["arr_0"].shape == (6, 16, 24, 3)
    evaluate(EvaluateOptions(
        what=str(out), reference=str(encoded.latents), out=tmp_path / "evals", features="digits", device="cpu",
    ))  # fmt: skip


def test_python_gives_images_of_this_size(run):
    (image,) = Generator(str(run)).images(classes=["red"], num_steps=1)
    assert image.size == (24, 16)


@pytest.mark.parametrize(
    "view", [{"trajectory": True}, {"interpolate": (0, 1)}, {"nearest": "pixels"}, {"sweep": ("num_steps=1,2",)}]
)
def test_views(run, tmp_path, view):
    asked = SampleOptions(model=str(run), num_samples=2, num_steps=2, out=tmp_path / "view", device="cpu", **view)
    result = sample(asked)
    assert isinstance(result, ViewResult)
    assert Image.open(result.image).width > 24


def test_references(run, images, tmp_path):
    made = EvaluateOptions(
        what=str(images), make_reference=tmp_path / "r.npz", resolution=WIDE, features="digits", device="cpu"
    )
    make_reference(made)
    assert np.load(tmp_path / "r.npz")["arr_0"].shape[1:] == (16, 24, 3)
    (tmp_path / "flat").mkdir()
    for number in range(3):
        Image.new("RGB", (24, 16), (number, 0, 0)).save(tmp_path / "flat" / f"{number}.png")
    assert folder_images(tmp_path / "flat").resolution == WIDE
    for turned in ("24x16", "32x24"):
        tall = made.model_copy(update={"what": str(tmp_path / "flat"), "resolution": Size.parse(turned)})
        with refused("other-resolution", turned):
            make_reference(tall)


@pytest.mark.parametrize("form", ["mpdit", "diffusers", "onnx", "torch-export"])
def test_exports(run, tmp_path, form):
    export_model(ExportOptions(model=str(run), out=tmp_path / "out", format=form))
    assert "16×24" in (tmp_path / "out" / "README.md").read_text()
    if form == "diffusers":
        pipeline: Any = MPDiTPipeline.from_pretrained(tmp_path / "out")
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.randn(2, 1, 16, 24)
        made = pipeline(class_labels=[0, 1], num_inference_steps=2, latents=noise, output_type="np").images
        assert made.shape == (2, 16, 24, 3)


def test_latents_as_a_data_set(encoded, tmp_path):
    result = export_model(ExportOptions(model=str(encoded.latents), out=tmp_path / "out", format="datasets"))
    assert result.images == 32


def test_counting(run):
    wide = profile_flops(ProfileOptions(preset=("tiny",), resolution=WIDE)).models[0]
    assert (wide.name, wide.resolution, wide.tokens) == ("tiny @16x24", WIDE, (4 * 6 + 2, 8 * 12 + 2))
    trained = profile_flops(ProfileOptions(model=str(run))).models[0]
    assert (trained.resolution, trained.tokens) == (WIDE, wide.tokens)
    with refused("resolution-does-not-fit", "16x22"):
        profile_flops(ProfileOptions(preset=("tiny",), resolution=Size(16, 22)))
    found = profile_flops(
        ProfileOptions(preset=("b-256",), resolution=Size(256, 384), search="target_macs=2e10")
    ).search
    assert found is not None
    assert found.resolution == Size(256, 384)
    changed = profile_flops(ProfileOptions(preset=("tiny",), settings=parse_assignments(["model.input_size=8x12"])))
    assert changed.models[0].resolution == Size(8, 12)


def test_what_is_there(encoded):
    entries = list_workspace(ListOptions(folder=encoded.latents.parent)).entries
    assert any("16x24 px, 1 × 16 × 24" in entry.about for entry in entries)
