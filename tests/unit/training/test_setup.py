"""What is decided before the first step: layers and where values come from, latents, refusals, the dry run."""

from __future__ import annotations

import pytest
import torch
from data_helpers import refused
from launch import run, succeed
from train_helpers import options, run_to_end

from mpdit_core import presets
from mpdit_core.config import RESUMABLE, Layers
from mpdit_core.reporting import Note, silent
from mpdit_core.settings import parse_assignments
from mpdit_core.size import Size
from mpdit_core.training import DryRunResult, TrainOptions, train
from mpdit_core.training.setup import plan_run, total_steps


def test_a_later_layer_wins_and_its_name_is_kept(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "tiny"\n[train]\nbatch_size = 16\nlearning_rate = 0.5\nseed = 7\n')
    layers = presets.layers(file=file, settings=parse_assignments(["train.learning_rate=0.25", "train.seed=8"]))
    layers = layers.over({"train": {"seed": 9}}, "--seed", fixed=True)
    train = layers.config().train
    assert (train.batch_size, train.learning_rate, train.seed, train.checkpoint_every) == (16, 0.25, 9, 4)
    origins = [layers.origin(f"train.{key}") for key in ("batch_size", "learning_rate", "seed", "checkpoint_every")]
    assert origins == [str(file), "--set", "--seed", "preset tiny"]
    assert {"train.batch_size", "train.learning_rate", "train.seed"} <= layers.fixed
    assert "train.checkpoint_every" not in layers.fixed
    assert Layers().origin("train.seed") == "default"


@pytest.mark.parametrize(
    ("settings", "above", "steps"),
    [
        ([], {}, 8),  # the preset's
        (["train.epochs=3"], {}, None),  # epochs of a higher layer than the preset's steps
        (["train.epochs=3", "train.steps=5"], {}, 5),  # both in one layer
        (["train.epochs=3"], {"train": {"steps": 6}}, 6),  # steps of a higher layer
    ],
)
def test_epochs_win_over_the_steps_of_a_lower_layer(settings, above, steps):
    layers = presets.layers(preset="tiny", settings=parse_assignments(settings)).over(above, "--steps")
    assert layers.config().train.steps == steps
    assert (layers.origin("train.steps") == "default") == (steps is None)
    assert total_steps(layers.config(), images=32) == (steps or 3 * 32 // 8)


def test_the_latents_are_a_layer(latents, tmp_path):
    notes = []
    plan = plan_run(options(latents, tmp_path / "run"), report=notes.append)
    assert plan.config.model.num_classes == 4
    assert plan.origins["model.num_classes"] == "latents"
    assert plan.origins["model.width"] == "preset tiny"
    assert [type(note) for note in notes] == [Note]
    assert not plan.resumes


def test_a_resumed_run_keeps_its_values_and_takes_new_ones(latents, tmp_path):
    run_to_end(options(latents, tmp_path / "run", "train.batch_size=4", steps=4))
    resumed = TrainOptions(run=tmp_path / "run", device="cpu", steps=9, settings={"train": {"log_every": 2}})
    plan = plan_run(resumed, report=silent)
    assert plan.resumes
    assert (plan.config.train.batch_size, plan.config.train.log_every, plan.total_steps) == (4, 2, 9)
    assert plan.latents.path == latents
    assert plan.origins["train.batch_size"] == f"the run {tmp_path / 'run'}"
    assert plan.origins["train.log_every"] == "--set"


def test_what_may_change_on_resume_is_said_by_the_fields():
    assert {"train.steps", "train.precision", "preview.every"} <= RESUMABLE
    assert not {"train.batch_size", "train.seed", "model.width", "time.mean"} & RESUMABLE


def test_no_resume_is_refused_where_there_is_a_run(latents, tmp_path):
    run_to_end(options(latents, tmp_path / "run", steps=1))
    with refused("run-exists"):
        plan_run(options(latents, tmp_path / "run", resume=False), report=silent)


def test_a_dry_run_says_what_would_be_and_writes_nothing(latents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train(TrainOptions(preset="tiny", latents=latents, device="cpu", dry_run=True, steps=5))
    assert isinstance(result, DryRunResult)
    assert (result.total_steps, result.images, result.config.model.num_classes) == (5, 32, 4)
    assert (result.origins["train.steps"], result.origins["train.seed"]) == ("--steps", "preset tiny")
    assert result.memory_bytes > result.activation_bytes > 0
    assert result.switched_memory_bytes < result.memory_bytes
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_where_each_value_came_from(latents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run("train", "--preset", "tiny", "--latents", latents, "--dry-run", "--set", "train.seed=7").out
    assert "width = 32  # from preset tiny" in shown
    assert "num_classes = 4  # from latents" in shown
    assert "seed = 7  # from --set" in shown
    assert "(nothing was written)" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--preset", "xl-265"], "no-such-preset", "did you mean xl-256"),
        (["--preset", "tiny", "--set", "train.batchsize=4"], "unknown-key", "did you mean train.batch_size"),
        (["--preset", "tiny", "--set", "train.betas=[0.9, 0.99]"], "unknown-key", "did you mean train.optimizer.betas"),
        (["--preset", "tiny", "--set", "model.width=\"wide\""], "invalid-value", "model.width"),
        (["--preset", "tiny", "--set", "model.width=30"], "invalid-value", "divisible"),
        (["--preset", "tiny", "--set", "model.num_classes=7"], "latents-do-not-fit", "the latents have 4"),
        (["--preset", "tiny", "--set", "train.accumulation=3"], "batch-not-divisible", "a multiple of 3"),
        (["--preset", "xl-256"], "wrong-resolution", "latents of 16 px"),
        (["--config", "missing.toml"], "no-such-file", "missing.toml does not exist"),
        (["--preset", "tiny", "--device", "cuda"], "no-such-device", "cuda"),
    ],
)  # fmt: skip
def test_mistakes_are_named(latents, tmp_path, monkeypatch, arguments, code, words):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    outcome = run("train", *arguments, "--latents", latents, "--json")
    assert (outcome.code, outcome.result["code"]) == (2, code)
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_no_and_two_candidate_latents(latents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run("train", "--preset", "tiny")
    assert outcome.code == 2
    assert "mpdit encode-latents" in outcome.err
    (tmp_path / "latents").mkdir()
    for name in ("a", "b"):
        (tmp_path / "latents" / name).symlink_to(latents)
    outcome = run("train", "--preset", "tiny")
    assert outcome.code == 2
    assert "--latents" in outcome.err


def test_a_folder_that_is_not_a_run_is_left_alone(latents, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with refused("not-a-run"):
        train(TrainOptions(preset="tiny", latents=latents, run=tmp_path, device="cpu"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_a_preset_the_one_that_fits_the_latents_is_taken(latents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run("train", "--json", "--dry-run")
    assert (outcome.code, outcome.result["code"]) == (2, "no-latents")
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "squares").symlink_to(latents)
    shown = succeed("train", "--dry-run", "--json")
    assert shown.result["config"]["preset"] == "digits"
    assert "preset digits, for 32 latents 1 × 16 × 16 of 16 px in latents/squares" in shown.err
    assert succeed("train", "--latents", latents, "--dry-run", "--json").result["config"]["preset"] == "digits"
    (tmp_path / "latents" / "more").symlink_to(latents)
    outcome = run("train", "--json", "--dry-run")
    assert (outcome.code, outcome.result["code"]) == (2, "ambiguous-latents")


@pytest.mark.parametrize(
    ("resolution", "shape", "images", "wanted"),
    [
        (16, (1, 16, 16), 100, "digits"),
        (256, (4, 32, 32), 50_000, "s-256"),  # the smallest
        (256, (4, 32, 32), 1_281_167, "xl-256"),
        (1024, (4, 128, 128), 10, "xl-1024"),
        (256, (16, 32, 32), 10, "s-256"),  # none has 16 channels
        (32, (3, 32, 32), 10, "s-32"),
        (32, (4, 32, 32), 10, "s-32"),
    ],
)
def test_the_proposed_preset(resolution: int, shape: tuple[int, int, int], images: int, wanted: str):
    assert presets.propose_preset(resolution=Size.square(resolution), latent_shape=shape, images=images) == (wanted, {})


@pytest.mark.parametrize(
    ("resolution", "side", "preset", "stages"),
    [
        (72, 72, "s-64", [(8, 6), (4, 6)]),  # as they are
        (48, 48, "s-64", [(6, 6), (3, 6)]),
        (64, 16, "s-64", [(2, 6), (1, 6)]),  # of an autoencoder of factor 4
        (256, 64, "s-256", [(16, 6), (8, 4), (4, 2)]),
        (384, 48, "s-256", [(12, 6), (6, 4), (3, 2)]),
        (37, 37, "s-32", [(37, 6), (1, 6)]),  # a prime
        (8, 1, "s-32", [(1, 12)]),
    ],
)
def test_a_preset_is_fitted_to_other_latents(resolution: int, side: int, preset: str, stages: list[tuple[int, int]]):
    proposed = presets.propose_preset(resolution=Size.square(resolution), latent_shape=(3, side, side), images=10)
    assert proposed.preset == preset
    config = presets.layers(preset=preset, fit=proposed.fit, settings={"model": {"input_size": side}}).config()
    assert config.resolution == Size.square(resolution)
    assert config.model.stages == tuple(stages)


@pytest.mark.parametrize(
    ("resolution", "shape", "preset", "stages"),
    [
        ("256x384", (4, 32, 48), "s-256", [(8, 6), (4, 4), (2, 2)]),
        ("40x24", (3, 40, 24), "s-32", [(4, 6), (2, 6)]),
        ("200x300", (4, 25, 37), "s-256", [(1, 12)]),  # no common factor
    ],
)
def test_a_preset_is_fitted_to_rectangles(resolution: str, shape: tuple[int, int, int], preset: str, stages: list):
    proposed = presets.propose_preset(resolution=Size.parse(resolution), latent_shape=shape, images=10)
    assert (proposed.preset, proposed.fit["resolution"]) == (preset, resolution)
    size = Size(*shape[1:]).plain()
    config = presets.layers(preset=preset, fit=proposed.fit, settings={"model": {"input_size": size}}).config()
    assert config.model.stages == tuple(stages)
