"""Training in several processes, and under kills and signals: the same run as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launch import free_port, kill_when, run_group, run_python, started, wait_until
from train_helpers import arguments, assert_same_run, metrics_of, options, relative_difference, run_to_end, state_of

from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import find_checkpoints, open_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.training.state.checkpoints import read

HELPERS = Path(__file__).parents[1] / "helpers"

# What the workers below begin with: LATENTS RUN as arguments; the last line says how it ended.
WORKER = f"""
import json, os, sys
from pathlib import Path
sys.path.insert(0, {str(HELPERS)!r})
from train_helpers import options
from mpdit_core.errors import UserError
from mpdit_core.reporting import Step, Warning
from mpdit_core.training import train
latents, run, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"])

def finish(wanted, watch):
    try:
        train(wanted, report=watch)
    except UserError as error:
        print(json.dumps([error.code, error.what]))
        sys.stdout.flush()
        os._exit(2)  # as mpdit_cli/__main__.py ends
    os._exit(0)
"""

LAST_CHECKPOINT_FAILS = f"""{WORKER}
def watch(event):
    if isinstance(event, Step) and event.step == 1 and rank == 0:
        (run / "checkpoints").write_text("in the way")

finish(options(latents, run, steps=2), watch)
"""

ONE_PART_FAILS = f"""{WORKER}
import resource, signal, time

def watch(event):
    if isinstance(event, Step) and event.step == 2 and rank == 1:
        while not (run / "checkpoints" / "step-0000001").exists():
            time.sleep(0.01)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    if isinstance(event, Warning):
        print(json.dumps([event.code, event.text]))

finish(options(latents, run, "train.checkpoint_every=1", "train.parallel=fsdp", steps=3), watch)
"""


def test_killed_twenty_times_and_resumed_is_bit_equal(latents, tmp_path):
    run, steps = tmp_path / "killed", 300
    outcome = run_python(HELPERS / "kill_training.py", latents, run, steps)
    assert outcome.code == 0, outcome.err
    assert 8 <= open_model(run).step < steps, "the kills were to fall into the training, over several checkpoints"
    run_to_end(options(latents, run, steps=steps))
    run_to_end(options(latents, tmp_path / "straight", steps=steps))
    assert_same_run(run, tmp_path / "straight")


def test_two_processes_equal_one_and_either_resumes_the_other(latents, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    outcomes = run_group("-m", "mpdit_cli", *arguments(latents, two), "--steps", 12)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    run_to_end(options(latents, one, steps=12))
    assert relative_difference(state_of(two), state_of(one)) < 1e-5
    losses = [[m["loss"] for m in metrics_of(run)] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # the mean over the ranks, not rank 0's
    for run in (one, two):
        run_to_end(options(latents, run, steps=16))
    assert relative_difference(state_of(two), state_of(one)) < 1e-5


def test_sharded_training_equals_one_process(latents, tmp_path):
    """With previews and two averages, stopped and resumed, then resumed by one process."""
    two, one = tmp_path / "sharded", tmp_path / "one"
    clip = ("train.grad_clip=0.5", "train.ema_decays=[0.99, 0.5]", "preview.every=2")
    sharded = arguments(latents, two, *clip, "train.parallel=fsdp")
    for steps in (4, 8):
        outcomes = run_group("-m", "mpdit_cli", *sharded, "--steps", steps)
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    run_to_end(options(latents, one, *clip, steps=8))
    assert relative_difference(state_of(two), state_of(one)) < 1e-5
    newest = find_checkpoints(two)[0][-1]
    assert len(list(newest.glob("training/*.safetensors"))) == 2  # one part per process
    assert not (newest / "training.safetensors").exists()
    assert [p.name for p in RunFolder(two).previews()] == [f"step-000000{n}.png" for n in (2, 4, 6, 8)]
    for run in (two, one):
        run_to_end(options(latents, run, *clip, steps=10))
    assert relative_difference(state_of(two), state_of(one)) < 1e-5
    assert sorted(p.name for p in (two / "checkpoints").iterdir())[-2:] == ["step-0000008", "step-0000010"]


def test_two_nodes_of_one_process_equal_one(latents, tmp_path):
    """Two torchrun agents that find each other over loopback, as two machines would."""
    run = tmp_path / "run"
    node = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    node += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "-m", "--", "mpdit_cli"]
    node += [*arguments(latents, run), "--steps", "4"]
    nodes = [subprocess.Popen(node, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].decode() for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], said
    run_to_end(options(latents, tmp_path / "one", steps=4))
    assert relative_difference(state_of(run), state_of(tmp_path / "one")) < 1e-5
    assert sum("trained" in text for text in said) == 1  # rank 0 alone reports


def test_a_signal_ends_the_command_with_a_checkpoint_and_how_to_resume(latents, tmp_path):
    run = tmp_path / "run"
    words = [*arguments(latents, run), "--steps", 100_000, "--json"]
    with started("-m", "mpdit_cli", *words) as process:
        outcome = kill_when(process, (run / "metrics.jsonl").exists, signum=signal.SIGTERM)
    assert outcome.code == 128 + signal.SIGTERM
    assert f"mpdit train --run {run}" in outcome.err.replace("\n", "")
    assert open_model(run).step == metrics_of(run)[-1]["step"]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize(("name", "to_all"), [("SIGKILL", False), ("SIGUSR1", False), ("SIGTERM", True)])
def test_the_processes_of_a_launcher_save_and_end_with_it(latents, tmp_path, name, to_all):
    """Also when a scheduler sends the signal to every process, and the launcher passes it on."""
    run, signum = tmp_path / "run", getattr(signal, name)
    words = [*arguments(latents, run, "train.log_every=1"), "--steps", 100_000, "--nproc", 2, "--quiet"]
    with started("-m", "mpdit_cli", *words) as launcher:
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


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_launcher_killed_at_start_up_leaves_nothing(latents, tmp_path):
    words = [*arguments(latents, tmp_path / "run"), "--steps", 100_000, "--nproc", 2]
    with started("-m", "mpdit_cli", *words) as launcher:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        wait_until(lambda: len(children.read_text().split()) == 2)
        ranks = children.read_text().split()
        kill_when(launcher, lambda: True)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), seconds=30)


def ends(outcomes) -> list[list[list[str]]]:
    """What each process printed, line by line."""
    return [[json.loads(line) for line in outcome.out.splitlines()] for outcome in outcomes]


def test_every_process_ends_with_the_same_error_when_the_last_checkpoint_cannot_be_written(latents, tmp_path):
    outcomes = run_group("-c", LAST_CHECKPOINT_FAILS, latents, tmp_path / "r")
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    first, second = ends(outcomes)
    assert first[-1] == second[-1]
    assert str(Path("r") / "checkpoints") in first[-1][1]


def test_a_second_training_is_refused_on_every_process(latents, tmp_path):
    from mpdit_core.runtime.locks import locked

    with locked(tmp_path / "r"):
        outcomes = run_group("-m", "mpdit_cli", *arguments(latents, tmp_path / "r"), "--json")
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    assert outcomes[0].result["code"] == "folder-in-use"


@pytest.fixture(scope="module")
def one_part_fails(latents, tmp_path_factory):
    """Process 1 alone may write no more after the first checkpoint."""
    run = tmp_path_factory.mktemp("sharded") / "r"
    return run, run_group("-c", ONE_PART_FAILS, latents, run)


def test_a_sharded_checkpoint_that_one_process_cannot_write_is_given_up_by_all(one_part_fails):
    """A warning on the way, an error at the end; the older checkpoint stays."""
    run, outcomes = one_part_fails
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    for printed in ends(outcomes):
        assert [code for code, _ in printed] == ["checkpoint-not-written", "cannot-write"]
        assert printed[-1][1].startswith("process 1 could not write its part of ")
        assert "File too large" in printed[-1][1]
    complete, torn = find_checkpoints(run)
    assert [p.name for p in complete] == ["step-0000001"]
    assert not torn
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-0000001"]
    assert read(complete[0]).position.step == 1


def test_a_damaged_part_is_named_and_its_checkpoint_passed_over(one_part_fails):
    folder = find_checkpoints(one_part_fails[0])[0][0]
    part = max((folder / "training").iterdir(), key=lambda file: file.stat().st_size)
    whole = part.read_bytes()
    part.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"training cannot be read") as damaged:
        read(folder)
    assert damaged.value.code == "damaged-file"
    assert [where for where, _ in find_checkpoints(one_part_fails[0])[1]] == [folder]
    part.unlink()
    complete, torn = find_checkpoints(one_part_fails[0])
    assert complete == []
    assert "1 of its 2 parts" in torn[0][1]
    part.write_bytes(whole)


def test_evaluation_in_a_run_of_two_processes_is_that_of_one(latents, tmp_path):
    pytest.importorskip("mpdit_digits")
    from mpdit_core.evaluation import EvaluateOptions, evaluate, read_records

    run = RunFolder(tmp_path / "r")
    measured = ["preview.evaluate_every=2", "preview.evaluate_samples=18", "preview.evaluate_features=digits-pixels"]
    outcomes = run_group("-m", "mpdit_cli", *arguments(latents, run.path, *measured), "--steps", 4)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    for _ in range(2):  # the second time after the finished run was started again, which measures nothing anew
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
