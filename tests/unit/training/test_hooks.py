"""What happens around a step: clock, divergence, averages, metrics, trackers, the panel, evaluation, signals."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from train_helpers import options, run_to_end, train_and_watch

from mpdit_cli.panel import TrainPanel
from mpdit_core import evaluation
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.models.model_folder import open_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import load_preset
from mpdit_core.reporting import Step, Warning
from mpdit_core.runtime.device import matmul_rate
from mpdit_core.training import trackers, train
from mpdit_core.training.hooks.metrics import what_is_wrong
from mpdit_core.training.session import WorkClock
from mpdit_core.training.state.ema import EMA, ExponentialAverage

STEP = Step(
    step=10, total_steps=300, loss=2.0, grad_norm=0.5, learning_rate=1e-3, images_seen=80, images_per_second=4.0,
    extra={"mfu": 0.25, "memory_bytes": 2.0**30},
)  # fmt: skip


@pytest.fixture(scope="module")
def run(latents, tmp_path_factory):
    """8 steps, tracked where TensorBoard is there."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    pytest.importorskip("tensorboard")
    events = run_to_end(options(latents, folder, 'train.trackers=["tensorboard"]', steps=8))
    return RunFolder(folder), [event for event in events if isinstance(event, Step)]


def test_pauses_do_not_count():
    seconds = 0.0
    clock = WorkClock(lambda: seconds)
    seconds = 2.0
    with clock.paused():
        seconds = 102.0
    seconds = 105.0
    assert clock.lap(10) == pytest.approx(10 / 5)
    seconds = 109.0  # the pause belongs to its window only
    assert clock.lap(18) == pytest.approx(8 / 4)
    clock.restart(4)
    seconds = 110.0
    assert clock.lap(6) == pytest.approx(2.0)


def test_a_spike_is_bad_too():
    def wrong(loss, grad_norm=1.0, mean: float | None = 1.0):
        return what_is_wrong(loss=loss, grad_norm=grad_norm, mean=mean, spike_factor=2.0)

    assert wrong(9.0, mean=None) is None
    assert wrong(1.9) is None
    assert "jumped to 2.1" in str(wrong(2.1))
    assert "gradient norm" in str(wrong(1.0, float("inf")))


def test_ema_follows_its_definition():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = EMA(model, [ExponentialAverage(0.9, warmup=True)])
    constant = EMA(model, [ExponentialAverage(0.9, warmup=False)])
    model.weight.data.fill_(1.0)
    ema.update(0)
    constant.update(0)
    assert ema.state()["weight"].item() == pytest.approx(1 - 0.1)  # (1 + 0) / (10 + 0)
    assert constant.state()["weight"].item() == pytest.approx(1 - 0.9)


def test_utilisation_and_memory_come_with_every_step(run):
    folder, steps = run
    assert len(steps) == 8
    lines = list(folder.metrics())
    assert [line["mfu"] for line in lines] == [step.extra["mfu"] for step in steps]
    assert all(0 < line["mfu"] < 1 for line in lines)
    assert all(line["memory_bytes"] > 50e6 for line in lines)


def test_the_rate_of_a_matrix_product_is_plausible():
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32, seconds=0.01) < 1e14


def test_tensorboard_holds_what_was_logged(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, steps = run
    read = EventAccumulator(str(folder.trackers / "tensorboard"))
    read.Reload()
    scalars = read.Scalars("loss")
    assert [s.step for s in scalars] == list(range(1, 9))
    assert [s.value for s in scalars] == pytest.approx([step.loss for step in steps], rel=1e-6)
    assert {"grad_norm", "mfu", "images_per_second"} <= set(read.Tags()["scalars"])


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_without_its_package_is_refused_before_any_work(name, latents, tmp_path, monkeypatch):
    found = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda n: None if n == name else found(n))
    with pytest.raises(UserError) as refused:
        train(options(latents, tmp_path / "r", f'train.trackers=["{name}"]'))
    assert refused.value.code == "missing-package"
    assert "mpdit[trackers]" in str(refused.value.remedy)
    assert not (tmp_path / "r").exists()


def test_wandb_resumes_its_run_and_another_folder_of_the_name_is_another(tmp_path, monkeypatch):
    """In wandb's own offline mode: each session is a folder of its own that says which run it belongs to."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for run, step in ((tmp_path / "a" / "xl-1", 0), (tmp_path / "a" / "xl-1", 8), (tmp_path / "b" / "xl-1", 0)):
        tracker = trackers.WandB(RunFolder(run), load_preset("tiny"), step=step)
        tracker.log({"loss": 1.0}, step=step + 1)
        tracker.close()
        ids.append((run / "trackers" / "wandb-id.txt").read_text().strip())
        assert list((run / "trackers" / "wandb").glob(f"offline-run-*-{ids[-1]}"))
    assert ids[0] == ids[1] != ids[2]


def test_a_tracker_that_fails_is_left_out_and_said_once(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, run, config, *, step):
            pass

        def log(self, values, *, step):
            raise OSError("no network")

        def close(self):
            pass

    events = []
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Broken)
    opened = trackers.Trackers(["wandb"], RunFolder(tmp_path), load_preset("tiny"), step=0, report=events.append)
    opened.log({"loss": 1.0}, step=1)
    opened.log({"loss": 1.0}, step=2)
    assert [(type(event), event.code) for event in events] == [(Warning, "tracker-failed")]


def test_panel_shows_the_mean_of_the_last_hundred_steps():
    panel = TrainPanel(Console(force_terminal=True, width=90, file=open(os.devnull, "w")))  # noqa: SIM115
    try:
        panel.show(STEP)
        panel.show(replace(STEP, step=100, loss=1.0))
        assert panel.rows()["mean of 100 steps"] == "1.5000"
        panel.show(replace(STEP, step=110, loss=0.5))  # step 10 is out of the window now
        panel.preview = "samples/step-0000100.png"
        rows = panel.rows()
        assert rows["mean of 100 steps"] == "0.7500"
        assert (rows["loss"], rows["MFU"], rows["memory"]) == ("0.5000", "25.0%", "1.00 GiB")
        with panel.console.capture() as shown:
            panel.console.print(panel.render())
        assert all(label in shown.get() for label in [*rows, "step 110 of 300"])
    finally:
        panel.close()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(latents, tmp_path, name):
    signum = getattr(signal, name)
    before = signal.getsignal(signum)

    def interrupt(event):
        if isinstance(event, Step) and event.step == 5:
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted) as stopped:
        train(options(latents, tmp_path / "run", steps=100), report=interrupt)
    assert (stopped.value.signum, stopped.value.remedy) == (signum, f"mpdit train --run {tmp_path / 'run'}")
    assert open_model(tmp_path / "run").step == 6
    assert [line["step"] for line in RunFolder(tmp_path / "run").metrics()][-1] == 6
    assert signal.getsignal(signum) == before


EVALUATED = ("preview.evaluate_every=4", "preview.evaluate_samples=16", "preview.evaluate_features=digits-pixels")


def test_an_unknown_extractor_for_evaluation_is_refused_before_any_work(latents, tmp_path):
    wanted = options(latents, tmp_path / "r", "preview.evaluate_every=4", "preview.evaluate_features=nothing")
    with pytest.raises(UserError, match="nothing"):
        train(wanted)
    assert not (tmp_path / "r").exists()


def test_evaluation_in_the_run_changes_nothing_of_it(run, latents, tmp_path):
    pytest.importorskip("mpdit_digits")
    folder = RunFolder(tmp_path / "r")
    events = run_to_end(options(latents, folder.path, *EVALUATED, steps=8))
    assert not [e for e in events if isinstance(e, Warning) and e.code == "evaluation-failed"]
    assert len(list(folder.evals.glob("*.json"))) == 2
    assert [line["step"] for line in folder.metrics() if "eval/frechet_distance" in line] == [4, 8]
    assert [e.loss for e in events if isinstance(e, Step)] == [step.loss for step in run[1]]


def test_an_evaluation_that_fails_does_not_end_the_run(latents, tmp_path, monkeypatch):
    def refuse(options, *, report):
        raise UserError("no reference", code="no-reference")

    monkeypatch.setitem(vars(evaluation), "require_features", lambda name, device, trusted: None)
    monkeypatch.setitem(vars(evaluation), "evaluate", refuse)
    result, events = train_and_watch(options(latents, tmp_path / "r", *EVALUATED, steps=8))
    assert result.step == 8
    assert [e.code for e in events if isinstance(e, Warning)] == ["evaluation-failed"] * 2


def test_an_evaluation_that_was_killed_is_made_up_once(latents, tmp_path, monkeypatch):
    measured, kills = [], 1

    def evaluate(options, *, report):
        nonlocal kills
        if kills:
            kills -= 1
            raise Interrupted(signal.SIGTERM)
        measured.append(open_model(options.what).step)
        return SimpleNamespace(metrics={"frechet_distance": 1.0})

    monkeypatch.setitem(vars(evaluation), "require_features", lambda name, device, **more: None)
    monkeypatch.setitem(vars(evaluation), "evaluate", evaluate)
    wanted = options(latents, tmp_path / "r", *EVALUATED, steps=6)
    with pytest.raises(Interrupted):
        train(wanted)
    assert open_model(tmp_path / "r").step == 4
    for steps in (6, 6, 8, 8):
        train(wanted.model_copy(update={"steps": steps}))
    assert measured == [4, 8]
    logged = [line["step"] for line in RunFolder(tmp_path / "r").metrics() if "eval/frechet_distance" in line]
    assert logged == [4, 8]
