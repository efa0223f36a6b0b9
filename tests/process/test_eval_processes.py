"""`eval-fid` over two processes, and going on after kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mpdit_core.evaluation.accumulator import Tally
from sample_helpers import write_model

from mpdit_cli.app import main
from mpdit_core.api import Features
from mpdit_core.runtime.distributed import World, process_group

FORK = multiprocessing.get_context("fork")  # children need not import torch again
CPU = torch.device("cpu")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPDIT_CACHE", str(tmp_path / "cache"))
    for name, count in (("a", 150), ("b", 140)):
        draw = np.random.RandomState(count)
        np.savez(f"{name}.npz", arr_0=draw.randint(0, 256, (count, 16, 16, 3)).astype(np.uint8))
    return tmp_path


def in_two_processes(work) -> None:
    """`work(rank)` in two forked processes of one gloo group."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]

    def enter(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost")
        os.environ["MASTER_PORT"] = str(port)
        work(rank)

    children = [FORK.Process(target=enter, args=(rank,)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0


def features(indices: list[int]) -> Features:
    """Features of numbered images: 12 pool features far from nought, 5 spatial ones, 4 classes."""
    rows = [np.random.RandomState(i).randn(21) for i in indices]
    x = torch.from_numpy(np.stack(rows)).float()
    return Features(x[:, :12] + 50, x[:, 12:17], x[:, 17:])


def figures(tally: Tally) -> dict[str, torch.Tensor]:
    pool, spatial, score = tally.gaussian(), tally.spatial_gaussian(), tally.score_of_logits()
    assert spatial is not None
    assert score is not None
    return {
        "pool": pool.covariance, "mean": pool.mean, "spatial": spatial.covariance, "rows": tally.kept_rows(),
        "score": torch.tensor(score.value, dtype=torch.float64), "count": torch.tensor(float(pool.count)),
    }  # fmt: skip


def measured_alone(count: int) -> dict[str, torch.Tensor]:
    tally = Tally(count, keep=range(count), device=CPU, folder=None)
    tally.add(range(count), features(list(range(count))))
    tally.finish(World())
    return figures(tally)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-10, atol=1e-10), name


def test_two_processes_with_uneven_counts_give_the_same_statistics(tmp_path):
    def work(rank: int) -> None:
        with process_group(CPU) as world:
            tally = Tally(90, keep=range(90), device=CPU, folder=tmp_path / "p")
            world.barrier()
            mine = list(range(17)) if rank == 0 else list(range(17, 90))
            tally.add(mine, features(mine))
            tally.finish(world)
            torch.save(figures(tally), tmp_path / f"{rank}.pt")

    in_two_processes(work)
    for rank in range(2):
        assert_equal(torch.load(tmp_path / f"{rank}.pt"), measured_alone(90))


def test_killed_after_the_processes_were_summed_nothing_is_counted_twice(tmp_path):
    def work(rank: int) -> None:
        with process_group(CPU) as world:
            tally = Tally(90, keep=range(90), device=CPU, folder=tmp_path / "p")
            world.barrier()
            mine = list(range(rank * 40, 40 + rank * 30))  # 20 are left
            tally.add(mine, features(mine))
            with pytest.raises(ValueError, match="20 of 90 images were not measured"):
                tally.finish(world)  # as a kill here would, it leaves the folder as it is

    in_two_processes(work)
    tally = Tally(90, keep=range(90), device=CPU, folder=tmp_path / "p")
    todo = tally.todo(range(90))
    assert todo == list(range(70, 90))
    tally.add(todo, features(todo))
    tally.finish(World())
    assert_equal(figures(tally), measured_alone(90))


def evaluate(out: str, *more: str) -> dict:
    arguments = ["eval-fid", "a.npz", "--reference", "b.npz", "--features", "digits", "--out", out, *more]
    assert main([*arguments, "--metrics", "fid,precision,recall,kid", "--device", "cpu", "--quiet"]) == 0
    return json.loads(next(Path(out).glob("*.json")).read_text())["metrics"]


def test_an_evaluation_by_two_processes_is_that_of_one(here, monkeypatch):
    in_two_processes(lambda _rank: evaluate("two"))
    monkeypatch.setenv("MPDIT_CACHE", str(here / "other"))
    one = evaluate("one")
    two = json.loads(next(Path("two").glob("*.json")).read_text())["metrics"]
    assert len(list(Path("two").iterdir())) == 1
    assert two == pytest.approx(one, rel=1e-6)  # the roots of eigenvalues that should be nought differ
    assert [two[k] for k in ("precision", "recall")] == [one[k] for k in ("precision", "recall")]


MODEL = ("eval-fid", "m", "--reference", "digits", "--features", "digits", "--num-samples", "120", "--num-steps", "1",
         "--batch-size", "5", "--metrics", "fid,is,precision,recall", "--device", "cpu", "--quiet")  # fmt: skip


def test_killed_while_it_samples_a_model_it_goes_on(here, capsys, monkeypatch):
    write_model(here / "m")
    assert main([*MODEL, "--num-samples", "9", "--out", "warm"]) == 0  # so that the reference is measured
    saves = "mpdit_core.evaluation.accumulator.SECONDS_BETWEEN_SAVES"
    for kills in range(1, 3):
        monkeypatch.setattr(saves, 0.0)  # the child saves after every batch
        child = FORK.Process(target=main, args=([*MODEL, "--out", "killed"],))
        child.start()
        until = time.monotonic() + 60
        while len(list(Path("killed").glob("*.partial/segment-*"))) < kills:
            assert time.monotonic() < until
            time.sleep(0.002)
        child.kill()
        child.join()
        assert not list(Path("killed").glob("*.json")), "it came to its end: make it longer"
    monkeypatch.setattr(saves, 60.0)
    capsys.readouterr()
    assert main([*MODEL, "--out", "killed", "--json"]) == 0
    assert "going on" in capsys.readouterr().out
    assert main([*MODEL, "--out", "straight"]) == 0
    found, expected = (json.loads(next(Path(f).glob("*.json")).read_text()) for f in ("killed", "straight"))
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-6)
    assert not list(Path("killed").glob("*.partial"))


def test_interrupted_it_prints_the_command_that_goes_on(here, capsys, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mpdit_core.evaluation.job.extract", interrupt)
    monkeypatch.setattr("sys.argv", ["mpdit", "eval-fid", "a.npz", "--reference", "b.npz"])
    assert main(["eval-fid", "a.npz", "--reference", "b.npz", "--features", "digits", "--device", "cpu"]) == 130
    assert "To go on: mpdit eval-fid a.npz --reference b.npz" in "".join(capsys.readouterr())
