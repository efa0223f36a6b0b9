"""Sweeps of trainings: the grid, what is skipped and resumed, figures over seeds, and what is refused."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import signal
from types import SimpleNamespace

import pytest
from data_helpers import refused
from launch import succeed
from train_helpers import assert_same_run, options, run_to_end

from mpdit_core import evaluation
from mpdit_core.errors import Interrupted
from mpdit_core.model.compute import training_macs
from mpdit_core.models.model_folder import open_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.reporting import Saved, Step, Warning
from mpdit_core.settings import parse_assignments
from mpdit_core.sweeps import with_value
from mpdit_core.training import TrainOptions, is_sweep_folder, train_sweep
from mpdit_core.training.batches import BatchSource
from mpdit_core.training.sweep import (
    RunEvaluation,
    RunOutcome,
    TrainSweepResult,
    best_of,
    cell_of,
    draw,
    points_of,
    statistics,
)

RATES = ("train.learning_rate=1e-3,4e-3",)


def sweep(latents, folder, *assignments, axes=RATES, **more) -> TrainOptions:
    return options(latents, folder, *assignments, **{"sweep": axes, "steps": 2, **more})


def trained_and_watched(wanted):
    """The result, the number of steps that were logged, and the codes of warnings."""
    events = []
    result = train_sweep(wanted, report=events.append)
    return result, sum(isinstance(e, Step) for e in events), [e.code for e in events if isinstance(e, Warning)]


def test_every_combination_with_every_seed_is_a_run_like_any_other(latents, tmp_path):
    axes = (*RATES, "model.stages=[[4,1]];[[2,2]]")
    result, steps, _ = trained_and_watched(sweep(latents, tmp_path / "s", axes=axes, seeds=2))
    assert steps == 2 * 2 * 2 * 2
    assert result.axes == ("train.learning_rate", "model.stages")
    assert [tuple(cell.values.values()) for cell in result.cells] == [
        ("1e-3", "[[4,1]]"), ("1e-3", "[[2,2]]"), ("4e-3", "[[4,1]]"), ("4e-3", "[[2,2]]"),
    ]  # fmt: skip
    for cell in result.cells:
        configs = [RunFolder(run.run).config() for run in cell.runs]
        assert [config.train.seed for config in configs] == [0, 1]
        assert {config.train.learning_rate for config in configs} == {float(cell.values["train.learning_rate"])}
        assert cell.flops == 2 * training_macs(configs[0].model) * 8 * 2
        assert cell.loss == statistics([run.loss for run in cell.runs if run.loss is not None])
        assert all(run.finished and not run.diverged for run in cell.runs)
    assert result.best == min(result.cells, key=lambda cell: cell.loss.mean if cell.loss else math.inf)
    assert (result.distance, result.plot) == (None, None)
    run_to_end(options(latents, tmp_path / "alone", "train.learning_rate=4e-3", "model.stages=[[2,2]]",
                       "train.seed=1", steps=2))  # fmt: skip
    assert_same_run(result.cells[3].runs[1].run, tmp_path / "alone")


def test_what_has_finished_is_skipped_and_what_is_asked_for_now_is_added(latents, tmp_path):
    first, steps, _ = trained_and_watched(sweep(latents, tmp_path / "s"))
    assert steps == 4
    assert is_sweep_folder(tmp_path / "s")
    again = TrainOptions(run=tmp_path / "s", device="cpu")
    assert trained_and_watched(again)[:2] == (first, 0)
    shutil.rmtree(RunFolder(first.cells[0].runs[0].run).checkpoint(2))  # as if it was killed before it was written
    assert trained_and_watched(again)[:2] == (first, 2)
    more, steps, _ = trained_and_watched(again.model_copy(update={"seeds": 2}, deep=True))
    assert steps == 4  # of the second seed
    assert [len(cell.runs) for cell in more.cells] == [2, 2]
    longer, steps, _ = trained_and_watched(TrainOptions(run=tmp_path / "s", device="cpu", steps=3))
    assert steps == 4  # one more in each run
    assert {run.step for cell in longer.cells for run in cell.runs} == {3}


def test_an_interrupted_sweep_resumes_in_the_middle_of_a_run(latents, tmp_path):
    def stop(event):
        if isinstance(event, Saved) and "4e-3" in str(event.path):
            signal.raise_signal(signal.SIGTERM)

    wanted = sweep(latents, tmp_path / "s", "train.checkpoint_every=1", steps=4)
    with pytest.raises(Interrupted) as stopped:
        train_sweep(wanted, report=stop)
    assert stopped.value.remedy == f"mpdit train --run {tmp_path / 's'}"
    part = train_sweep(TrainOptions(run=tmp_path / "s", device="cpu", dry_run=True))
    assert [cell.runs[0].finished for cell in part.cells] == [True, False]
    assert part.best == part.cells[0]
    assert 0 < part.cells[1].runs[0].step < 4
    result = train_sweep(TrainOptions(run=tmp_path / "s", device="cpu"))
    straight = train_sweep(wanted.model_copy(update={"run": tmp_path / "straight"}))
    for a, b in zip(result.cells, straight.cells, strict=True):
        assert_same_run(a.runs[0].run, b.runs[0].run)


def test_distances_are_compared_against_compute(latents, tmp_path, monkeypatch):
    def evaluate(options, *, report):
        model = open_model(options.what)
        distance = 10 / model.step + 1000 * model.config.train.learning_rate + model.config.train.seed
        return SimpleNamespace(metrics={"frechet_distance": distance, "frechet_distance_bias": 0.1})

    monkeypatch.setitem(vars(evaluation), "require_features", lambda name, device, **more: None)
    monkeypatch.setitem(vars(evaluation), "evaluate", evaluate)
    result = train_sweep(sweep(latents, tmp_path / "s", "preview.evaluate_every=1", seeds=2))
    first, second = result.cells
    assert result.distance == "Fréchet distance"
    assert first.distance
    assert second.distance
    assert (first.distance.mean, first.distance.std) == pytest.approx((6.5, math.sqrt(0.5)))
    assert second.distance.mean == pytest.approx(9.5)
    assert result.best == first
    assert points_of(first) == [
        (pytest.approx(first.flops * step / 2), pytest.approx(10 / step + 1.5), pytest.approx(math.sqrt(0.5)))
        for step in (1, 2)
    ]
    table = json.loads((tmp_path / "s" / "table.json").read_text())
    assert table["best"]["values"] == {"train.learning_rate": "1e-3"}
    if result.plot:
        assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_a_combination_that_diverges_is_no_error_and_not_the_best(latents, tmp_path, monkeypatch):
    batch_of = BatchSource.batch

    def poisoned(self, step):
        batch = batch_of(self, step)
        if self.seed == 1:
            batch.latents[:] = math.nan
        return batch

    monkeypatch.setattr(BatchSource, "batch", poisoned)
    wanted = sweep(latents, tmp_path / "s", seeds=2)
    result, _, codes = trained_and_watched(wanted)
    assert codes == ["diverged"] * 2
    assert [[run.diverged for run in cell.runs] for cell in result.cells] == [[False, True]] * 2
    assert [cell.loss.count for cell in result.cells if cell.loss] == [1, 1]
    assert result.best is None
    assert trained_and_watched(wanted)[1:] == (0, [])


def test_the_command_line_of_the_best_gives_its_options(latents, tmp_path):
    settings = ("train.schedule=wsd", "model.stages=[{patch_size=4, depth=1}]", 'objective."./mine.py:Mine".name="1.0"')
    wanted = with_value(sweep(latents, tmp_path / "s", *settings), "train.ema_decays", "[0.5, 1e-7]")
    words = shlex.split(wanted.command_line())
    assert words[:8] == ["mpdit", "train", "--preset", "tiny", "--latents", str(latents), "--steps", "2"]
    assert parse_assignments(words[9::2]) == wanted.settings


def test_seeds_alone_are_runs_of_the_same_configuration(latents, tmp_path):
    result, steps, _ = trained_and_watched(sweep(latents, tmp_path / "s", axes=(), seeds=2, steps=1))
    assert (result.axes, steps) == ((), 2)
    assert [run.run.name for run in result.cells[0].runs] == ["seed0", "seed1"]


def test_a_dry_run_checks_all_and_writes_nothing(latents, tmp_path):
    result = train_sweep(sweep(latents, tmp_path / "s", dry_run=True))
    assert [cell.loss for cell in result.cells] == [None, None]
    assert result.best is None
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("axes", "code"),
    [
        (("train.learning_rate",), "not-a-sweep"),
        (("train.learning_rate=1e-3,-1",), "invalid-value"),
        (("train.learning_rat=1e-3",), "unknown-key"),
        (("steps=1,2",), "unknown-key"),
        (("preset=tiny,tinny",), "no-such-preset"),
        (("train.seed=1,2",), "swept-twice"),
        ((*RATES, *RATES), "swept-twice"),
        (("train.accumulation=1,3",), "batch-not-divisible"),
    ],
)
def test_mistakes_are_refused_before_the_first_run(latents, tmp_path, axes, code):
    with refused(code):
        train_sweep(sweep(latents, tmp_path / "s", axes=axes))
    assert not (tmp_path / "s").exists()


def test_folders_of_other_things_are_left_alone(latents, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with refused("not-a-sweep-folder"):
        train_sweep(sweep(latents, tmp_path))
    (tmp_path / "s").mkdir()
    texts = {"{": "damaged-file", "[]": "damaged-file", '{"format": 0}': "unknown-format",
             '{"format": 1}': "invalid-value", '{"format": 1, "options": {"x": 1}}': "unknown-key"}  # fmt: skip
    for text, code in texts.items():
        (tmp_path / "s" / "sweep.json").write_text(text)
        with refused(code):
            train_sweep(sweep(latents, tmp_path / "s"))
    with refused("run-exists"):
        train_sweep(sweep(latents, tmp_path / "s", resume=False))


def test_the_best_has_the_lowest_mean_distance_of_those_whose_runs_all_finished(tmp_path):
    def run(loss, distance, *, finished=True):
        evaluations = () if distance is None else (RunEvaluation(step=1, flops=1.0, distance=distance, name="FID"),)
        return RunOutcome(run=tmp_path, seed=0, step=1, finished=finished, diverged=False, loss=loss,
                          evaluations=evaluations)  # fmt: skip

    def cell(*runs):
        return cell_of({"a": str(runs)}, runs, flops=1.0, command="")

    mean, low, part = cell(run(1.0, 4.0), run(2.0, 6.0)), cell(run(3.0, 4.5)), cell(run(1.0, 1.0, finished=False))
    assert best_of([mean, low, part]) == low
    unmeasured = cell(run(3.0, None)), cell(run(2.0, None))
    assert best_of(unmeasured) == unmeasured[1]
    assert best_of([part]) is None
    assert mean.loss
    assert low.loss
    assert (mean.loss.mean, mean.loss.std, low.loss.std) == (1.5, pytest.approx(math.sqrt(0.5)), None)


@pytest.mark.filterwarnings("error")
def test_seeds_alone_are_drawn_without_a_legend(tmp_path):
    pytest.importorskip("matplotlib")
    measured = (RunEvaluation(step=1, flops=1.0, distance=2.0, name="d"),)
    run = RunOutcome(run=tmp_path, seed=0, step=1, finished=True, diverged=False, loss=1.0, evaluations=measured)
    cell = cell_of({}, [run], flops=1.0, command="")
    draw(TrainSweepResult(path=tmp_path, axes=(), cells=(cell,), distance="d", best=cell), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()


def test_the_command_prints_a_table_and_the_best(latents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--preset", "tiny", "--latents", latents, "--device", "cpu", "--steps", 1]
    outcome = succeed(*words, "--sweep", "train.optimizer.name=adamw,muon", "--set", "preview.every=0", "--json")
    assert outcome.result["path"] == "runs/sweep-1"
    assert "train.optimizer.name" in outcome.err
    best = outcome.result["best"]["values"]["train.optimizer.name"]
    assert f"--set train.optimizer.name={best}" in outcome.err.replace("\n", " ")
    assert (tmp_path / "runs" / "sweep-1" / "train.optimizer.name=muon-seed0" / "checkpoints").is_dir()
