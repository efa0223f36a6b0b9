"""Trackers, the panel, the report, evaluation in the run, and the measures that go with every step."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from mpdit_cli.train_panel import TrainPanel
from rich.console import Console

from mpdit_cli.app import main
from mpdit_core.errors import UserError
from mpdit_core.presets import load_preset
from mpdit_core.reporting import Note, TrainStep, Warn
from mpdit_core.run_report.job import curve, report
from mpdit_core.runtime.device import matmul_rate
from mpdit_core.training import trackers
from mpdit_core.training.job import TrainOptions, train

STEP = TrainStep(
    step=10, total_steps=300, loss=2.0, grad_norm=0.5, learning_rate=1e-3, images_seen=80, images_per_second=4.0,
    extra={"mfu": 0.25, "memory_bytes": 2.0**30},
)  # fmt: skip


@pytest.fixture(scope="module")
def run(latents, tmp_path_factory):
    """8 steps with previews, tracked where TensorBoard is there."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    pytest.importorskip("tensorboard")
    options = TrainOptions(
        preset="tiny", latents=latents, run=folder, device="cpu", assignments=['train.trackers=["tensorboard"]']
    )
    events = list(train(options))
    return folder, [event for event in events if isinstance(event, TrainStep)]


def test_utilisation_and_memory_come_with_every_step(run):
    folder, steps = run
    assert len(steps) == 8
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["mfu"] for line in lines] == [step.extra["mfu"] for step in steps]
    assert all(0 < line["mfu"] < 1 for line in lines)
    assert all(line["memory_bytes"] > 50e6 for line in lines)


def test_tensorboard_holds_what_was_logged(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, steps = run
    read = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    read.Reload()
    scalars = read.Scalars("loss")
    assert [s.step for s in scalars] == list(range(1, 9))
    assert [s.value for s in scalars] == pytest.approx([step.loss for step in steps], rel=1e-6)
    assert {"grad_norm", "mfu", "images_per_second"} <= set(read.Tags()["scalars"])


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_without_its_package_is_refused_before_any_work(name, latents, tmp_path, monkeypatch, capsys):
    found = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda n: None if n == name else found(n))
    arguments = [
        "train",
        "--preset",
        "tiny",
        "--latents",
        str(latents),
        "--run",
        str(tmp_path / "r"),
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--set", f'train.trackers=["{name}"]']) == 2
    assert f"pip install {name}" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_wandb_goes_on_with_its_run_and_another_folder_of_the_name_is_another(tmp_path, monkeypatch):
    begun = []

    class Package:  # in place of wandb, which asks for an account
        Settings = staticmethod(lambda **values: values)

        @staticmethod
        def init(**given):
            begun.append(given)

    monkeypatch.setitem(sys.modules, "wandb", Package)
    for run, step in ((tmp_path / "a" / "xl-1", 0), (tmp_path / "a" / "xl-1", 8), (tmp_path / "b" / "xl-1", 0)):
        trackers.WandB(run, load_preset("tiny"), step=step)
    first, resumed, other = begun
    assert first["name"] == resumed["name"] == other["name"] == "xl-1"
    assert first["id"] == resumed["id"] != other["id"]
    assert (first["resume"], resumed["resume"]) == (None, "allow")
    assert first["settings"] == {"console": "off"}


def test_a_tracker_that_fails_is_left_out_and_said_once(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, run, config, *, step):
            pass

        def log(self, values, *, step):
            raise OSError("no network")

        def close(self):
            pass

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Broken)
    opened = trackers.Trackers(["wandb"], tmp_path, load_preset("tiny"), step=0)
    first, second = list(opened.log(STEP)), list(opened.log(STEP))
    assert [type(event) for event in first] == [Warn]
    assert "no network" in first[0].text
    assert second == []


def test_panel_shows_the_mean_of_the_last_hundred_steps():
    panel = TrainPanel(Console(force_terminal=True, width=90, file=open("/dev/null", "w")))  # noqa: SIM115
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


def test_report_is_one_page_with_everything_inside(run, capsys):
    folder, steps = run
    assert main(["report", str(folder), "--json", "--quiet"]) == 0
    page = (folder / "report.html").read_text()
    assert page.count("<polyline") == 6  # five curves, and the loss's running mean
    assert page.count("data:image/png;base64,") == 2  # previews of steps 4 and 8
    assert f"{steps[-1].loss:.4f}" in page
    assert "batch_size = 8" in page
    assert not re.search(r"(src|href)=(?!['\"]?data:)", page)  # nothing is fetched
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["evaluations"] == 0


def test_report_refuses_what_is_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_report_passes_over_a_torn_line(run, tmp_path):
    folder, _ = run
    (tmp_path / "config.toml").write_text((folder / "config.toml").read_text())
    (tmp_path / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text() + '{"step": 9, "lo')
    assert any(isinstance(event, Warn) and "1 unreadable" in event.text for event in report(tmp_path))


def test_curves_put_the_extremes_at_the_edges():
    points = re.search(r'points="([^"]+)"', curve([(0, 1.0), (5, 3.0), (10, 2.0)]))[1].split()
    (x0, y0), (_, y1), (x2, y2) = (map(float, p.split(",")) for p in points)
    assert x0 < x2
    assert y1 < y2 < y0  # SVG counts downwards
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_an_unknown_extractor_for_evaluation_is_refused_before_any_work(latents, tmp_path):
    wanted = ["preview.evaluate_every=4", "preview.evaluate_features=nothing"]
    options = TrainOptions(preset="tiny", latents=latents, run=tmp_path / "r", device="cpu", assignments=wanted)
    with pytest.raises(UserError, match="nothing"):
        list(train(options))
    assert not (tmp_path / "r").exists()


def test_evaluation_in_the_run_changes_nothing_of_it(run, latents, tmp_path):
    pytest.importorskip("mpdit_digits")
    _, steps = run
    wanted = ["preview.every=0", "preview.evaluate_every=4", "preview.evaluate_samples=16"]
    wanted += ["preview.evaluate_features=digits-pixels"]
    folder = tmp_path / "r"
    options = TrainOptions(preset="tiny", latents=latents, run=folder, device="cpu", assignments=wanted)
    events = list(train(options))
    assert not [event.text for event in events if isinstance(event, Warn) and "no evaluation" in event.text]
    assert len(list((folder / "evals").glob("*.json"))) == 2
    told = [event.text for event in events if isinstance(event, Note) and "frechet_distance" in event.text]
    assert [text.split(":")[0] for text in told] == ["step-0000004", "step-0000008"]
    assert [e.loss for e in events if isinstance(e, TrainStep)] == [step.loss for step in steps]


def test_evaluation_in_a_run_of_two_processes_is_that_of_one(latents, tmp_path):
    pytest.importorskip("mpdit_digits")
    run, measure = tmp_path / "r", ["--features", "digits-pixels", "--metrics", "fid", "--num-samples", "18"]
    wanted = ["preview.every=0", "preview.evaluate_every=2", "preview.evaluate_samples=18"]
    wanted += ["preview.evaluate_features=digits-pixels"]
    command = [sys.executable, "-m", "mpdit_cli", "train", "--preset", "tiny", "--latents", str(latents), "--run"]
    command += [str(run), "--device", "cpu", "--steps", "4", "--nproc", "2"]
    command += [word for assignment in wanted for word in ("--set", assignment)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for _ in range(2):  # the second time after the finished run was started again, which measures nothing anew
        records = [json.loads(path.read_text()) for path in (run / "evals").iterdir()]
        values = {record["model"]["step"]: record["metrics"]["frechet_distance"] for record in records}
        assert len(records) == 2
        assert sorted(values) == [2, 4]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
        logged = [(line["step"], line["eval/frechet_distance"]) for line in lines if "loss" not in line]
        assert logged == sorted(values.items())
        list(train(TrainOptions(run=run, device="cpu")))
    for step, value in values.items():
        out = tmp_path / f"alone-{step}"
        checkpoint = run / "checkpoints" / f"step-{step:07d}"
        assert main(["eval-fid", str(checkpoint), *measure, "--device", "cpu", "--quiet", "--out", str(out)]) == 0
        alone = json.loads(next(out.glob("*.json")).read_text())["metrics"]["frechet_distance"]
        assert value == pytest.approx(alone, rel=1e-5)
    assert main(["report", str(run), "--quiet"]) == 0
    page = (run / "report.html").read_text()
    assert "frechet distance, measured in the run" in page
    assert page.index("step 2:") < page.index("step 4:")


def test_the_rate_of_a_matrix_product_is_plausible():
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32, side=256, seconds=0.01) < 1e14
