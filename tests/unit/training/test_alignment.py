"""The objective `alignment`: its value by hand, whole runs with it, and what is refused before them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_helpers import refused
from latents_fixture import make_latents
from torch import nn
from train_helpers import options, run_to_end

from mpdit_core.api import Prediction, TrainingBatch
from mpdit_core.data.latents import LatentFolder
from mpdit_core.encoding import EncodeOptions, encode_latents
from mpdit_core.flow.objectives.alignment import Alignment, Convolution
from mpdit_core.models.model_folder import load_model, open_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.testing import check_objective
from mpdit_core.training.batches import BatchSource

ALIGNED = "objective.alignment.weight=0.5"


def add_teacher(latents: Path, **more: Any) -> Path:
    source = str(latents.parent.parent / "images")
    same = {"source": source, "resolution": 16, "autoencoder": "pixels-gray", "flip": False, "device": "cpu"}
    encode_latents(EncodeOptions(**(same | {"out": latents, "teacher": "latents"} | more)))
    return latents


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents with their own patches as a teacher."""
    return make_latents(tmp_path_factory.mktemp("taught"), teacher="latents")


@pytest.mark.parametrize("projector", ["mlp", "convolution"])
@pytest.mark.parametrize("normalise", ["none", "spatial"])
def test_every_form_keeps_the_contract(projector: Any, normalise: Any):
    check_objective(Alignment(projector=projector, normalise=normalise))


def value(objective: Alignment, tokens: torch.Tensor, features: torch.Tensor) -> float:
    network: Any = SimpleNamespace(prediction=Prediction(tokens, tokens, tokens), modules=nn.Identity())
    batch = TrainingBatch(tokens, tokens, tokens, tokens, teacher=features)
    return objective.loss(network, batch, lambda *_: None).item()


def test_the_loss_is_minus_the_mean_cosine():
    features = torch.randn(3, 4, 5)
    assert value(Alignment(), 7 * features, features.half()) == pytest.approx(-1, abs=1e-3)
    assert value(Alignment(), -features, features) == pytest.approx(1, abs=1e-6)
    half = torch.cat([features[:, :2], torch.zeros_like(features[:, 2:])], dim=1)  # a zero has the cosine 0
    assert value(Alignment(), half, features) == pytest.approx(-0.5, abs=1e-6)


def test_spatial_normalisation_leaves_out_what_all_tokens_share():
    torch.manual_seed(0)
    structure, scale = torch.randn(2, 6, 5), torch.tensor([1.0, 2, 3, 4, 5])
    standard = (structure - structure.mean(1, keepdim=True)) / structure.std(1, keepdim=True, correction=0)
    objective = Alignment(normalise="spatial")
    assert value(objective, standard, 100 + scale * structure) == pytest.approx(-1, abs=1e-4)
    assert value(replace(objective, spatial_mean=0.0), standard, 100 + scale * structure) > -0.5


def test_a_convolution_sees_the_neighbours_of_a_token():
    tokens = torch.zeros(1, 12, 2)
    tokens[0, 5] = 1  # row 1, column 1 of 3 × 4
    convolution = Convolution(2, 3, grid=(3, 4))
    moved = (convolution(tokens) - convolution(torch.zeros_like(tokens))).abs().sum(-1).view(3, 4) > 0
    assert moved.tolist() == [[True, True, True, False]] * 3


def test_batches_hold_the_features_of_their_images_mirrored_with_them(taught: Path, tmp_path: Path):
    config = RunFolder(tmp_path / "run")
    run_to_end(options(taught, config.path, ALIGNED, steps=1))
    folder = LatentFolder(taught)
    batch = BatchSource(folder, config.config(), needs=frozenset({"teacher"})).batch(0)
    patches = batch.latents.unflatten(3, (4, 4)).unflatten(2, (4, 4)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    assert batch.teacher is not None
    assert torch.allclose(batch.teacher.float(), patches, atol=5e-3)  # of pixels, the clean image itself


def test_a_run_learns_and_exports_the_network_alone(taught: Path, tmp_path: Path):
    straight = tmp_path / "straight"
    run_to_end(options(taught, straight, ALIGNED, steps=24))
    aligned = [line["loss/alignment"] for line in RunFolder(straight).metrics()]
    assert sum(aligned[-4:]) < sum(aligned[:4])
    exported = open_model(straight)
    assert not [name for name in load_model(straight).state_dict() if "beside" in name]
    teacher = LatentFolder(taught).teacher
    assert exported.latents is not None
    assert teacher is not None
    assert exported.latents.teacher == teacher.plan.hash()


def test_refusals_before_the_first_step(taught: Path, tmp_path: Path):
    plain = make_latents(tmp_path / "plain")
    with refused("no-teacher"):
        run_to_end(options(plain, tmp_path / "run", ALIGNED, steps=1))
    with refused("does-not-fit"):
        one_stage = "model.stages=[{patch_size=4,depth=1}]"
        run_to_end(options(taught, tmp_path / "run", ALIGNED, one_stage, steps=1))
    add_teacher(plain, teacher_patch_size=2)
    with refused("grid-does-not-fit", "4 × 4", "8 × 8"):
        run_to_end(options(plain, tmp_path / "run", ALIGNED, steps=1))
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_with_its_own_features_only(taught: Path, tmp_path: Path):
    shutil.copytree(taught.parent.parent, tmp_path / "copy")
    latents, run = tmp_path / "copy" / "latents" / taught.name, tmp_path / "run"
    run_to_end(options(latents, run, ALIGNED, steps=2))
    add_teacher(latents, teacher_dims=3, replace_teacher=True)
    with refused("different-latents"):
        run_to_end(options(latents, run, ALIGNED, steps=4))
