"""Runs with each objective: the same bits when resumed, the same numbers for any accumulation, parts in the metrics."""

from __future__ import annotations

import pytest
from data_helpers import refused
from train_helpers import assert_same_run, metrics_of, options, relative_difference, run_to_end, state_of
from train_objectives import OBJECTIVES

from mpdit_core.models.run_folder import RunFolder
from mpdit_core.training import train
from mpdit_core.training.options import DryRunResult

objectives = pytest.mark.parametrize("assignments", OBJECTIVES.values(), ids=OBJECTIVES)


@objectives
def test_resumed_is_bit_equal_and_accumulation_equals_one_part(latents, tmp_path, assignments):
    for run, steps in (("straight", 4), ("resumed", 2), ("resumed", 4)):
        run_to_end(options(latents, tmp_path / run, *assignments, steps=steps))
    run_to_end(options(latents, tmp_path / "parts", *assignments, "train.accumulation=2", steps=4))
    assert_same_run(tmp_path / "resumed", tmp_path / "straight")
    assert relative_difference(state_of(tmp_path / "parts"), state_of(tmp_path / "straight")) < 1e-5
    losses = [[m["loss"] for m in metrics_of(tmp_path / run)] for run in ("parts", "straight")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_is_trained_beside_the_network_is_saved_with_the_run_but_not_with_the_model(latents, tmp_path):
    run = tmp_path / "run"
    run_to_end(options(latents, run, *OBJECTIVES["with-modules"], steps=4))
    name = "objective.train_objectives:Reader.weight"
    state = state_of(run)
    assert {key for key in state if key.endswith(name)} == {f"weights.{name}"} | {
        f"optimizer.{slot}.{name}" for slot in ("exp_avg", "exp_avg_sq", "step")
    }
    lines = list(RunFolder(run).metrics())
    for line in lines:
        both = line["loss/flow-matching"] + 0.5 * line["loss/train_objectives:Reader"]
        assert line["loss"] == pytest.approx(both, rel=1e-5)
        assert line["train_objectives:Reader/error"] == pytest.approx(line["loss/train_objectives:Reader"], rel=1e-4)
    assert lines[-1]["loss/train_objectives:Reader"] < lines[0]["loss/train_objectives:Reader"]


def test_the_run_holds_every_option_and_none_may_change(latents, tmp_path):
    run = tmp_path / "run"
    run_to_end(options(latents, run, "objective.contrastive={}", steps=1))
    saved = RunFolder(run).config().objective
    assert saved == {
        "flow-matching": {"weight": 1.0, "weighting": "uniform", "snr_limit": 5.0}, "contrastive": {"weight": 0.05},
    }  # fmt: skip
    run_to_end(options(latents, run, "objective.contrastive.weight=0.05", steps=2))
    for change in ("objective.contrastive.weight=0.1", "objective.velocity-direction.vector=image"):
        with refused("different-configuration"):
            run_to_end(options(latents, run, change, steps=3))


def test_code_that_a_run_or_file_names_needs_trust(latents, tmp_path):
    run, file = tmp_path / "run", tmp_path / "mine.toml"
    (typed, *_) = OBJECTIVES["with-modules"]
    run_to_end(options(latents, run, typed, steps=1))
    file.write_text('[objective."train_objectives:Reader"]\nweight = 0.5\n')
    for again in (options(latents, run, steps=2), options(latents, tmp_path / "new", steps=2, config=file)):
        with refused("untrusted-code"):
            run_to_end(again)
        run_to_end(again.model_copy(update={"trust": True}))


@pytest.mark.parametrize(("assignment", "code"), [
    ("objective.flow-matchin.weight=1", "no-such-plugin"),
    ("objective.contrastive.wieght=1", "unknown-key"),
    ("objective.flow-matching.weight=0", "no-objective"),
    ("objective.contrastive.weight=0.1", "batch-too-small"),
    ("objective.velocity-direction.weight=1", "does-not-fit"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_a_folder_is_made(latents, tmp_path, assignment, code):
    with refused(code):
        train(options(latents, tmp_path / "run", assignment, "train.batch_size=1", dry_run=True))


def test_a_dry_run_shows_every_option(latents, tmp_path):
    shown = train(options(latents, tmp_path / "run", "objective.contrastive.weight=0.1", dry_run=True))
    assert isinstance(shown, DryRunResult)
    assert shown.config.objective["contrastive"] == {"weight": 0.1}
    assert shown.origins["objective.contrastive.weight"] == "--set"
