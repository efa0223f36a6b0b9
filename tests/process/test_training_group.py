"""Training in several processes, and under kills and signals: the same run as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ema_helpers import joined
from launch import SERVER, forked, free_port, kill_when, serve_command, serve_group, wait_until
from launch import run as mpdit
from safetensors import safe_open
from train_helpers import arguments, assert_same_run, metrics_of, options, relative_difference, run_to_end, state_of
from train_objectives import OBJECTIVES
from train_workers import last_checkpoint_fails, one_part_fails, torchrun, train_and_die

from mpdit_core.errors import UserError
from mpdit_core.models.ema_snapshots import at_ema_width
from mpdit_core.models.model_folder import find_checkpoints, open_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.runtime.distributed import launch
from mpdit_core.training.state.checkpoints import read_checkpoint

TRIALS = 8
pytestmark = pytest.mark.xdist_group("one server")  # `SERVER`, whose imports take ten seconds
OPTIMIZERS = pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [("train.optimizer.name=adamw", 1e-5), ("train.optimizer.name=muon", 1e-3)],  # whose products are in bfloat16
)


def test_killed_again_and_again_and_resumed_is_bit_equal(latents, tmp_path):
    """SIGKILL some steps after each start, also before the first step."""
    run, steps, dice = tmp_path / "killed", 200, random.Random(0)
    snapshots = ("train.ema_widths=[0.1]", "train.ema_snapshot_every=3")
    for trial in range(TRIALS):
        killed = (options(latents, run, *snapshots, steps=steps), trial * 7 % TRIALS, dice.uniform(0, 0.06))
        child = SERVER.Process(target=train_and_die, args=killed)
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert 6 <= open_model(run).step < steps, "the kills must hit the training, over several checkpoints"
    run_to_end(options(latents, run, *snapshots, steps=steps))
    run_to_end(options(latents, tmp_path / "straight", *snapshots, steps=steps))
    assert_same_run(run, tmp_path / "straight")
    killed, straight = ({p.name: p.read_bytes() for p in r.glob("ema/*")} for r in (run, tmp_path / "straight"))
    assert killed == straight
    assert len(killed) == 67  # every third step, and the last


@OPTIMIZERS
def test_two_processes_equal_one_and_either_resumes_the_other(latents, tmp_path, optimizer, tolerance):
    two, one = tmp_path / "two", tmp_path / "one"
    outcomes = serve_command(*arguments(latents, two, optimizer), "--steps", 12)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    run_to_end(options(latents, one, optimizer, steps=12))
    assert relative_difference(state_of(two), state_of(one)) < tolerance
    losses = [[m["loss"] for m in metrics_of(run)] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)  # the mean over the ranks, not rank 0's
    for run in (one, two):
        run_to_end(options(latents, run, optimizer, steps=16))
    assert relative_difference(state_of(two), state_of(one)) < tolerance


@OPTIMIZERS
def test_sharded_training_equals_one_process(latents, tmp_path, optimizer, tolerance):
    """With previews, two EMAs and snapshots of two more, stopped and resumed, then resumed by one process."""
    two, one = tmp_path / "sharded", tmp_path / "one"
    clip = (optimizer, "train.grad_clip=0.5", "train.ema_decays=[0.99, 0.5]", "preview.every=2",
            "train.ema_widths=[0.05, 0.1]", "train.ema_snapshot_every=2")  # fmt: skip
    sharded = arguments(latents, two, *clip, "train.parallel=fsdp")
    for steps in (4, 8):
        outcomes = serve_command(*sharded, "--steps", steps)
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    run_to_end(options(latents, one, *clip, steps=8))
    assert relative_difference(state_of(two), state_of(one)) < tolerance
    assert RunFolder(two).ema_snapshot_steps() == RunFolder(one).ema_snapshot_steps() == [2, 4, 6, 8]
    sharded_average, average = (joined(at_ema_width(open_model(run), 0.07).weights()) for run in (two, one))
    assert (sharded_average - average).norm() < (tolerance + 2.0**-11) * average.norm()
    newest = find_checkpoints(two)[0][-1]
    assert len(list(newest.glob("training/*.safetensors"))) == 2  # one part per process
    assert not (newest / "training.safetensors").exists()
    assert [p.name for p in RunFolder(two).previews()] == [f"step-000000{n}.png" for n in (2, 4, 6, 8)]
    for run in (two, one):
        run_to_end(options(latents, run, *clip, steps=10))
    assert relative_difference(state_of(two), state_of(one)) < tolerance
    assert sorted(p.name for p in (two / "checkpoints").iterdir())[-2:] == ["step-0000008", "step-0000010"]


def test_two_processes_equal_one_with_every_objective(latents, tmp_path):
    """All terms in one loss: two steps with DDP, two with FSDP, and two by one process with gradient accumulation."""
    assignments = [each for objective in OBJECTIVES.values() for each in objective]
    two, one = tmp_path / "two", tmp_path / "one"
    for parallel, steps in (("ddp", 2), ("fsdp", 4)):
        words = arguments(latents, two, *assignments, f"train.parallel={parallel}")
        outcomes = serve_command(*words, "--steps", steps)
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    run_to_end(options(latents, two, *assignments, "train.accumulation=2", steps=6))
    run_to_end(options(latents, one, *assignments, steps=6))
    assert relative_difference(state_of(two), state_of(one)) < 1e-5
    for line, expected in zip(RunFolder(two).metrics(), RunFolder(one).metrics(), strict=True):
        parts = {key: value for key, value in expected.items() if key == "loss" or "/" in key}
        assert len(parts) >= 1 + len(OBJECTIVES)
        assert {key: line[key] for key in parts} == pytest.approx(parts, rel=1e-4)


def test_a_resumed_sharded_run_ends_with_the_same_parts(latents, tmp_path):
    """With Muon, whose state is sharded as AdamW's is, which moves the rest."""
    for run, sessions in (("resumed", (2, 4)), ("straight", (4,))):
        for steps in sessions:
            words = arguments(latents, tmp_path / run, "train.optimizer.name=muon", "train.parallel=fsdp")
            assert [outcome.code for outcome in serve_command(*words, "--steps", steps)] == [0, 0]
    resumed, straight = ({p.name: p for p in (tmp_path / run).glob("checkpoints/step-0000004/training/*")}
                         for run in ("resumed", "straight"))  # fmt: skip
    assert resumed.keys() == straight.keys()
    for name in straight:
        with safe_open(resumed[name], "pt") as found, safe_open(straight[name], "pt") as expected:
            assert found.metadata() == expected.metadata()
            assert set(found.keys()) == set(expected.keys())
            assert all(torch.equal(found.get_tensor(key), expected.get_tensor(key)) for key in expected.keys())  # noqa: SIM118


def test_a_sweep_in_two_processes_trains_every_run_in_both(latents, tmp_path):
    words = [*arguments(latents, tmp_path / "s"), "--steps", 2, "--sweep", "train.schedule=wsd,cosine"]
    outcomes = serve_command(*words)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    for schedule in ("wsd", "cosine"):
        run_to_end(options(latents, tmp_path / schedule, f"train.schedule={schedule}", steps=2))
        run = tmp_path / "s" / f"train.schedule={schedule}-seed0"
        assert relative_difference(state_of(run), state_of(tmp_path / schedule)) < 1e-5


def test_two_nodes_of_one_process_equal_one(latents, tmp_path):
    """Two torchrun agents that find each other over loopback, as two machines would."""
    run = tmp_path / "run"
    node = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    outcomes = serve_group(torchrun, [*node, "-m", "--", "mpdit_cli", *arguments(latents, run), "--steps=4"])
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    run_to_end(options(latents, tmp_path / "one", steps=4))
    assert relative_difference(state_of(run), state_of(tmp_path / "one")) < 1e-5
    assert sum("trained" in outcome.out + outcome.err for outcome in outcomes) == 1  # rank 0 alone reports


def test_a_signal_ends_the_command_with_a_checkpoint_and_how_to_resume(latents, tmp_path):
    folder = tmp_path / "run"

    def stop() -> None:
        wait_until((folder / "metrics.jsonl").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        pool.submit(stop)
        outcome = mpdit(*arguments(latents, folder), "--steps", 100_000, "--json")
    assert outcome.code == 128 + signal.SIGTERM
    assert f"mpdit train --run {folder}" in outcome.err.replace("\n", "")
    assert open_model(folder).step == metrics_of(folder)[-1]["step"]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize(("name", "to_all"), [("SIGKILL", False), ("SIGTERM", True)])
def test_the_processes_of_a_launcher_save_and_end_with_it(latents, tmp_path, name, to_all):
    """Also when a scheduler sends the signal to every process, and the launcher passes it on."""
    run, signum = tmp_path / "run", getattr(signal, name)
    words = [*arguments(latents, run, "train.log_every=1"), "--steps", 100_000, "--nproc", 2, "--quiet"]
    with forked(*words) as launcher:
        wait_until(lambda: (run / "metrics.jsonl").exists() or launcher.poll() is not None)
        ranks = [int(c) for c in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
        for pid in ranks if to_all else ():
            os.kill(pid, signum)
        outcome = kill_when(launcher, lambda: True, signum=signum)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))
    assert len(ranks) == 2
    assert outcome.code == (-signum if name == "SIGKILL" else 128 + signum)
    assert "Traceback" not in outcome.err
    assert open_model(run).step == metrics_of(run)[-1]["step"]


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for Python")
def test_a_launcher_passes_a_signal_on_to_every_process(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        f"#!/bin/sh\ntrap 'touch {tmp_path}/stopped-$RANK; exit 138' USR1\ntouch {tmp_path}/begun-$RANK\n"
        "while :; do sleep 0.01; done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    def stop() -> None:
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
        os.kill(os.getpid(), signal.SIGUSR1)

    with ThreadPoolExecutor() as pool:
        pool.submit(stop)
        assert launch([], 2) == (138, None)
    assert len(list(tmp_path.glob("stopped-*"))) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_launcher_killed_at_start_up_leaves_nothing(latents, tmp_path):
    words = [*arguments(latents, tmp_path / "run"), "--steps", 100_000, "--nproc", 2]
    with forked(*words) as launcher:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        wait_until(lambda: len(children.read_text().split()) == 2)
        ranks = children.read_text().split()
        kill_when(launcher, lambda: True)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), seconds=30)


def ends(outcomes) -> list[list[list[str]]]:
    """What each process printed, line by line."""
    return [[json.loads(line) for line in outcome.out.splitlines()] for outcome in outcomes]


def test_every_process_ends_with_the_same_error_when_the_last_checkpoint_cannot_be_written(latents, tmp_path):
    outcomes = serve_group(last_checkpoint_fails, latents, tmp_path / "r")
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    first, second = ends(outcomes)
    assert first[-1] == second[-1]
    assert str(Path("r") / "checkpoints") in first[-1][1]


def test_a_second_training_is_refused_on_every_process(latents, tmp_path):
    from mpdit_core.runtime.locks import locked

    with locked(tmp_path / "r"):
        outcomes = serve_command(*arguments(latents, tmp_path / "r"), "--json")
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    assert outcomes[0].result["code"] == "folder-in-use"


@pytest.fixture(scope="module")
def half_written(latents, tmp_path_factory):
    """A sharded run of which process 1 could write its part of the first checkpoint only."""
    run = tmp_path_factory.mktemp("sharded") / "r"
    return run, serve_group(one_part_fails, latents, run)


def test_a_sharded_checkpoint_that_one_process_cannot_write_is_given_up_by_all(half_written):
    """A warning during the training, an error at its end; the older checkpoint is kept."""
    run, outcomes = half_written
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    for printed in ends(outcomes):
        assert [code for code, _ in printed] == ["checkpoint-not-written", "cannot-write"]
        assert printed[-1][1].startswith("process 1 could not write its part of ")
        assert "File too large" in printed[-1][1]
    complete, torn = find_checkpoints(run)
    assert [p.name for p in complete] == ["step-0000001"]
    assert not torn
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-0000001"]
    assert read_checkpoint(complete[0]).position.step == 1


def test_a_damaged_part_is_named_and_its_checkpoint_passed_over(half_written):
    run = half_written[0]
    folder = find_checkpoints(run)[0][0]
    part = max((folder / "training").iterdir(), key=lambda file: file.stat().st_size)
    whole = part.read_bytes()
    part.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"training cannot be read") as damaged:
        read_checkpoint(folder)
    assert damaged.value.code == "damaged-file"
    assert [where for where, _ in find_checkpoints(run)[1]] == [folder]
    part.unlink()
    complete, torn = find_checkpoints(run)
    assert complete == []
    assert "1 of its 2 parts" in torn[0][1]
    part.write_bytes(whole)


def test_evaluation_in_a_run_of_two_processes_is_that_of_one(latents, tmp_path):
    pytest.importorskip("mpdit_digits")
    from mpdit_core.evaluation import EvaluateOptions, evaluate, read_records

    run = RunFolder(tmp_path / "r")
    measured = ["preview.evaluate_every=2", "preview.evaluate_samples=18", "preview.evaluate_features=digits-pixels"]
    outcomes = serve_command(*arguments(latents, run.path, *measured), "--steps", 4)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    values = {}
    for _ in range(2):  # the second time after the finished run was started again, which measures nothing
        records = read_records(run.evals)
        values = {record.step: record.metrics["frechet_distance"] for record in records}
        assert sorted(values) == [2, 4]
        lines = list(run.metrics())
        assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
        logged = [(line["step"], line["eval/frechet_distance"]) for line in lines if "loss" not in line]
        assert logged == sorted(values.items())
        run_to_end(options(latents, run.path, *measured, steps=4))
    for step, value in values.items():
        alone = EvaluateOptions(
            what=str(run.checkpoint(step)), num_samples=18, features="digits-pixels", metrics=("fid",),
            out=tmp_path / f"alone-{step}", device="cpu",
        )  # fmt: skip
        assert value == pytest.approx(evaluate(alone).metrics["frechet_distance"], rel=1e-5)
