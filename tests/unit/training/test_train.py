"""Training: the same numbers whatever interrupts it and however many processes share it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from train_helpers import QUICK, options, run_to_end

from mpdit_cli.app import main
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import find_checkpoints, load_model, open_model
from mpdit_core.presets import load_preset, preset_names
from mpdit_core.reporting import Result, Saved, TrainStep
from mpdit_core.training import checkpoints
from mpdit_core.training.hooks.divergence import Sentinel
from mpdit_core.training.job import TrainOptions
from mpdit_core.training.state.sharded import can_write

EXACT = ("step", "loss", "grad_norm", "learning_rate", "images_seen")


def state_of(run: Path) -> dict[str, torch.Tensor]:
    """Weights, optimizer and averages of the newest checkpoint."""
    newest = find_checkpoints(run)[0][-1]
    return checkpoints.read(newest).training() | load_file(newest / "model.safetensors")


def metrics_of(run: Path) -> list[dict]:
    return [{k: json.loads(line)[k] for k in EXACT} for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(a: Path, b: Path) -> None:
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
    assert metrics_of(a) == metrics_of(b)


@pytest.fixture(scope="module")
def straight(latents, tmp_path_factory) -> Path:
    """24 steps in one go."""
    run = tmp_path_factory.mktemp("straight") / "run"
    run_to_end(options(latents, run, steps=24))
    return run


def test_events_and_files(latents, tmp_path):
    events = run_to_end(
        TrainOptions(preset="tiny", latents=latents, run=tmp_path / "run", device="cpu", assignments=["train.steps=8"])
    )
    steps = [e for e in events if isinstance(e, TrainStep)]
    assert [s.step for s in steps] == list(range(1, 9))
    assert steps[-1].images_seen == 64
    assert {e.what for e in events if isinstance(e, Saved)} == {"checkpoint", "preview"}
    assert isinstance(events[-1], Result)
    run = tmp_path / "run"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-0000004", "step-0000008"]
    assert {p.name for p in (run / "samples").iterdir()} == {
        "step-0000004.png", "step-0000004-raw.png", "step-0000008.png", "step-0000008-raw.png", "training.gif",
    }  # fmt: skip
    opened = open_model(run)
    assert opened.config.model.num_classes == 4  # the latents' classes, not the preset's
    assert opened.latents.class_names == ("blue", "green", "red", "white")
    velocity = load_model(run)(torch.randn(2, 1, 16, 16), torch.tensor([0.5]), torch.tensor([0, 4]))
    assert velocity.shape == (2, 1, 16, 16)
    assert torch.isfinite(velocity).all()


def test_it_learns(latents, tmp_path):
    run_to_end(options(latents, tmp_path / "run", "train.learning_rate=4e-3", "train.batch_size=16", steps=120))
    losses = [m["loss"] for m in metrics_of(tmp_path / "run")]
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])


def test_killed_twenty_times_and_resumed_is_bit_equal(latents, tmp_path):
    run, steps = tmp_path / "killed", 600
    driver = Path(__file__).parents[2] / "helpers" / "kill_training.py"
    command = [sys.executable, str(driver), str(latents), str(run), str(steps)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert 8 <= open_model(run).step < steps, "the kills were to fall into the training, over several checkpoints"
    run_to_end(options(latents, run, steps=steps))
    run_to_end(options(latents, tmp_path / "straight", steps=steps))
    assert_same_run(run, tmp_path / "straight")


def test_several_ema_rates_and_their_files(latents, tmp_path):
    rates = ("train.ema_decays=[0.9, 0.5]", "train.ema_warmup=false")
    wanted = options(latents, tmp_path / "a", *rates, steps=8)
    run_to_end(wanted)
    run_to_end(options(latents, tmp_path / "b", *rates, steps=4))
    run_to_end(options(latents, tmp_path / "b", *rates, steps=8))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    newest = find_checkpoints(tmp_path / "a")[0][-1]
    assert not torch.equal(
        load_file(newest / "ema-0.5.safetensors")["head.linear.weight"],
        load_file(newest / "model.safetensors")["head.linear.weight"],
    )


def test_ema_follows_its_definition():
    from mpdit_core.training.state.ema import EMA

    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = EMA(model, decays=[0.9], warmup=True)
    constant = EMA(model, decays=[0.9], warmup=False)
    model.weight.data.fill_(1.0)
    ema.update(0)
    constant.update(0)
    assert ema.state()["weight"].item() == pytest.approx(1 - 0.1)  # (1 + 0) / (10 + 0)
    assert constant.state()["weight"].item() == pytest.approx(1 - 0.9)


def test_torn_checkpoint_is_named_and_passed_over(latents, tmp_path):
    run = tmp_path / "run"
    run_to_end(options(latents, run, steps=8))
    newest = run / "checkpoints" / "step-0000008" / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    events = run_to_end(options(latents, run, steps=12))
    said = [e.text for e in events if hasattr(e, "text")]
    assert any("passing over" in text and "step-0000008" in text for text in said)
    assert any("going on from" in text and "step-0000004" in text for text in said)
    straight = tmp_path / "straight"
    run_to_end(options(latents, straight, steps=12))
    assert_same_run(straight, run)


def test_another_configuration_is_refused_with_the_difference(latents, straight):
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.001 → 0\.5"):
        run_to_end(options(latents, straight, "train.learning_rate=0.5", steps=24))


def test_other_latents_are_refused(straight, tmp_path):
    from latents_fixture import make_images

    images = make_images(tmp_path / "other", per_class=3)
    out = tmp_path / "latents"
    assert (
        main(["encode-latents", str(images), "--resolution", "16", "--autoencoder", "pixels-gray", "--out", str(out)])
        == 0
    )
    with pytest.raises(UserError, match="not those this run was trained on"):
        run_to_end(options(out, straight, steps=24))


@pytest.fixture
def poisoned(latents, tmp_path) -> Path:
    """The same latents with a NaN in image 5."""
    copy = Path(shutil.copytree(latents, tmp_path / "poisoned"))
    shard = copy / "shard-00000.safetensors"
    tensors = load_file(shard)
    tensors["moments"][5, 0, 0, 0] = float("nan")
    with safe_open(shard, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, shard, metadata=metadata)
    return copy


def test_stops_at_a_bad_step_and_keeps_the_evidence(poisoned, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"stopped at step .*nan"):
        run_to_end(options(poisoned, run, steps=8))
    evidence = json.loads(next(run.glob("bad-step-*.json")).read_text())
    assert 5 in evidence["indices"]
    assert len(evidence["indices"]) == 8
    assert evidence["step"] <= 4  # image 5 is in the first pass over the 32 images


def test_rollback_goes_back_and_leaves_the_bad_batches_out(poisoned, tmp_path):
    run = tmp_path / "run"
    assignments = ('train.on_nonfinite="rollback"', "train.checkpoint_every=1")
    events = run_to_end(options(poisoned, run, *assignments, steps=12))
    back = [e.text for e in events if "back to step" in getattr(e, "text", "")]
    assert len(back) >= 3  # once in every pass over the data
    assert [m["step"] for m in metrics_of(run)] == list(range(1, 13))
    assert all(torch.isfinite(t).all() for t in state_of(run).values())
    assert len(open_model(run).extra["position"]["skipped"]) == len(back)


def test_a_spike_is_bad_too():
    sentinel = Sentinel(2.0)
    assert sentinel.check(loss=1.0, grad_norm=1.0) is None
    assert sentinel.check(loss=1.9, grad_norm=1.0) is None
    assert "jumped to 2.1" in sentinel.check(loss=2.1, grad_norm=1.0)
    assert "gradient norm" in sentinel.check(loss=1.0, grad_norm=float("inf"))


def test_old_checkpoints_go_and_milestones_stay(latents, tmp_path):
    run = tmp_path / "run"
    run_to_end(options(latents, run, "train.keep_last=1", "train.keep_every=8", steps=20))
    assert [p.name for p in find_checkpoints(run)[0]] == ["step-0000008", "step-0000016", "step-0000020"]


def mpdit(*arguments: object, processes: int = 1) -> list[str]:
    return [
        sys.executable,
        "-m",
        "mpdit_cli",
        *map(str, arguments),
        *(["--nproc", str(processes)] if processes > 1 else []),
    ]


def sets(*assignments: str) -> list[str]:
    return [word for a in (*QUICK, *assignments) for word in ("--set", a)]


@pytest.fixture(scope="module")
def two_processes(latents, tmp_path_factory) -> Path:
    """The run of `straight` on two processes: stopped after 20 steps by the number of steps, then on to 24 alone."""
    run = tmp_path_factory.mktemp("two") / "run"
    command = mpdit("train", "--preset", "tiny", "--latents", latents, "--run", run, *sets(), processes=2)
    subprocess.run([*command, "--steps", "20", "--device", "cpu"], check=True, capture_output=True, timeout=120)
    return run


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """‖a - b‖ / ‖b‖ over all weights."""
    first, second = (torch.cat([s[n].flatten() for n in sorted(s) if n.startswith("weights.")]) for s in (a, b))
    return ((first - second).norm() / second.norm()).item()


def test_two_processes_and_accumulation_equal_one(latents, two_processes, tmp_path):
    run_to_end(options(latents, tmp_path / "one", steps=20))
    run_to_end(options(latents, tmp_path / "accumulated", "train.accumulation=2", steps=20))
    one = state_of(tmp_path / "one")
    assert relative_difference(state_of(two_processes), one) < 1e-5
    assert relative_difference(state_of(tmp_path / "accumulated"), one) < 1e-5
    losses = [[m["loss"] for m in metrics_of(run)] for run in (tmp_path / "one", two_processes)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # the mean over the ranks, not rank 0's


def test_goes_on_with_another_number_of_processes(latents, straight, two_processes):
    events = run_to_end(options(latents, two_processes, steps=24))
    assert any("going on from" in getattr(e, "text", "") for e in events)
    assert relative_difference(state_of(two_processes), state_of(straight)) < 1e-5


def test_sharded_training_equals_one_process(latents, tmp_path):
    run = tmp_path / "sharded"
    command = mpdit("train", "--preset", "tiny", "--latents", latents, "--run", run, processes=2)
    command += [*sets('train.parallel="fsdp"', "train.grad_clip=0.5"), "--device", "cpu", "--steps"]
    subprocess.run([*command, "4"], check=True, capture_output=True, timeout=120)
    subprocess.run([*command, "8"], check=True, capture_output=True, timeout=120)  # resumed
    run_to_end(options(latents, tmp_path / "one", "train.grad_clip=0.5", steps=8))
    assert relative_difference(state_of(run), state_of(tmp_path / "one")) < 1e-5
    newest = find_checkpoints(run)[0][-1]
    if can_write():
        assert len(list(newest.glob("training/*.safetensors"))) == 2  # a part of each process
        assert not (newest / "training.safetensors").exists()
    for where in (run, tmp_path / "one"):  # and on alone
        run_to_end(options(latents, where, "train.grad_clip=0.5", steps=10))
    assert relative_difference(state_of(run), state_of(tmp_path / "one")) < 1e-5
    assert sorted(p.name for p in (run / "checkpoints").iterdir())[-2:] == ["step-0000008", "step-0000010"]


def test_two_nodes_of_one_process_equal_one(latents, tmp_path):
    """Two torchrun agents that find each other over loopback, as two machines would."""
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    node += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "-m", "--", "mpdit_cli", "train"]
    node += [
        "--preset",
        "tiny",
        "--latents",
        str(latents),
        "--run",
        str(run),
        "--device",
        "cpu",
        "--steps",
        "4",
        *sets(),
    ]
    nodes = [subprocess.Popen(node, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].decode() for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], said
    run_to_end(options(latents, tmp_path / "one", steps=4))
    assert relative_difference(state_of(run), state_of(tmp_path / "one")) < 1e-5
    assert sum("trained" in text for text in said) == 1  # rank 0 alone reports


@pytest.mark.parametrize("name", [n for n in preset_names() if n.startswith("ablation")] + ["v2-b-512", "b-256"])
def test_every_ablation_trains(latents, tmp_path, name):
    """The preset's switches and kinds of stages, at a size for a test."""
    model = load_preset(name).model
    small = [[stage.patch_size, 1] for stage in model.stages]
    assignments = ["resolution=16", "model.width=32", "model.num_heads=2", f"model.stages={small}"]
    assignments += ["train.batch_size=8", "train.log_every=1", "preview.every=0", "model.input_size=16"]
    wanted = TrainOptions(
        preset=name, assignments=assignments, latents=latents, run=tmp_path / "run", device="cpu", steps=2
    )
    run_to_end(wanted)
    trained = open_model(tmp_path / "run").config.model
    for switch in ("modulation", "class_tokens", "time_embedding", "skip"):
        assert getattr(trained, switch) == getattr(model, switch)
    losses = [m["loss"] for m in metrics_of(tmp_path / "run")]
    assert all(0.1 < loss < 10 for loss in losses)


def test_sigterm_saves_and_says_how_to_go_on(latents, straight, tmp_path):
    run = tmp_path / "run"
    command = mpdit("train", "--preset", "tiny", "--latents", latents, "--run", run, "--device", "cpu", *sets())
    process = subprocess.Popen([*command, "--steps", "100000"], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"mpdit train --run {run}" in said.replace("\n", "")
    assert open_model(run).step == metrics_of(run)[-1]["step"]


def test_dry_run_writes_nothing(latents, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--preset", "tiny", "--latents", str(latents), "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["event"] == "result"
    assert result["memory_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "xl-265"], "did you mean xl-256"),
        (["--preset", "tiny", "--set", "train.batchsize=4"], "did you mean train.batch_size"),
        (["--preset", "tiny", "--set", "model.width=\"wide\""], "model.width"),
        (["--preset", "tiny", "--set", "model.width=30"], "divisible"),
        (["--preset", "tiny", "--set", "model.num_classes=7"], "the latents have 4"),
        (["--preset", "tiny", "--set", "train.accumulation=3"], "cannot be shared"),
        (["--preset", "xl-256"], "latents of 16 px"),
        (["--config", "missing.toml"], "missing.toml does not exist"),
        ([], "--preset NAME or --config"),
        (["--preset", "tiny", "--device", "cuda"], "--device"),
    ],
)  # fmt: skip
def test_mistakes_are_named(latents, tmp_path, monkeypatch, capsys, arguments, words):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "--latents", str(latents)]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_and_two_candidate_latents(latents, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--preset", "tiny"]) == 2
    assert "mpdit encode-latents" in capsys.readouterr().err
    (tmp_path / "latents").mkdir()
    for name in ("a", "b"):
        (tmp_path / "latents" / name).symlink_to(latents)
    assert main(["train", "--preset", "tiny"]) == 2
    assert "--latents" in capsys.readouterr().err


def test_a_folder_that_is_not_a_run_is_left_alone(latents, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["train", "--preset", "tiny", "--latents", str(latents), "--run", str(tmp_path)]) == 2
    assert "not a run" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
