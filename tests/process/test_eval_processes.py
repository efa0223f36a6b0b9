"""Evaluations by two processes, killed, stopped and resumed: the bits are always the same."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from eval_helpers import enter_folder, pictures
from launch import FORK, fork_group, run, wait_until
from safetensors.torch import load_file
from sample_helpers import write_model

from mpdit_cli.app import main
from mpdit_core.api import Features
from mpdit_core.errors import Interrupted
from mpdit_core.evaluation import EvaluationRecord
from mpdit_core.evaluation.collecting import Blocks, ImageBlock, collect
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.features import extract
from mpdit_core.reporting import Progress, silent
from mpdit_core.runtime.distributed import World, process_group

CPU = torch.device("cpu")
COUNT, BLOCK = 90, 7


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    enter_folder(tmp_path, monkeypatch)
    for name, count in (("a", 150), ("b", 140)):
        np.savez(f"{name}.npz", arr_0=pictures(count, seed=count))
    return tmp_path


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> Iterator[None]:
    """Several chunks in few images, and one thread, as the processes of a group have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("mpdit_core.evaluation.progress.CHUNK_IMAGES", 32)
    yield
    torch.set_num_threads(threads)


def numbers(watch: Callable[[int], object] = lambda number: None) -> Blocks:
    """Images that hold their number; `read` calls `watch` with each block's."""

    def read(wanted: Sequence[int]) -> Iterator[ImageBlock]:
        for number in wanted:
            watch(number)
            indices = torch.arange(number * BLOCK, min((number + 1) * BLOCK, COUNT))
            yield ImageBlock(number, indices.view(-1, 1, 1, 1).expand(-1, 3, 1, 1).to(torch.uint8), nfe=number)

    return Blocks(BLOCK, read)


class FeaturesOfNumbers:
    name: ClassVar[str] = "numbers"

    def __call__(self, images: torch.Tensor) -> Features:
        rows = [np.random.RandomState(int(image[0, 0, 0])).randn(21) for image in images]
        x = torch.from_numpy(np.stack(rows)).float()
        return Features(x[:, :12] + 50, x[:, 12:17], x[:, 17:])

    def load(self, device: torch.device) -> None: ...

    def fingerprint(self) -> str:
        return "numbers"


def measured(
    folder: Path, *, world: World | None = None, blocks: Blocks | None = None, report=silent
) -> dict[str, torch.Tensor]:
    """The state of the accumulator at the end, and the cost per image."""
    accumulator = FeatureAccumulator(COUNT, keep=range(COUNT))
    cost = collect(
        blocks or numbers(),
        FeaturesOfNumbers(),
        accumulator,
        folder=folder,
        world=world or World(),
        report=report,
        task="evaluate",
        finish=lambda cost: cost,
    )
    return accumulator.state() | {"cost": torch.tensor(cost)}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_two_processes_give_the_same_bits_as_one(tmp_path):
    def work(rank: int) -> None:
        with process_group(CPU) as world:
            torch.save(measured(tmp_path / "two", world=world), tmp_path / f"{rank}.pt")

    fork_group(work)
    expected = measured(tmp_path / "one")
    for rank in range(2):
        assert_same_bits(torch.load(tmp_path / f"{rank}.pt"), expected)


@pytest.mark.parametrize("stops", [(0,), (3, 4), (1, 5, 9), (12,)])
def test_stopped_anywhere_and_resumed_gives_the_same_bits(tmp_path, stops):
    """A signal comes while block `stop` is read: that block is finished, saved, and not read again."""
    read: list[int] = []

    for stop in stops:

        def interrupt(number: int, stop: int = stop) -> None:
            read.append(number)
            if number == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Interrupted) as caught:
            measured(tmp_path / "p", blocks=numbers(interrupt))
        assert caught.value.signum == signal.SIGTERM
    resumed = measured(tmp_path / "p", blocks=numbers(read.append))
    assert sorted(read) == list(range(13))  # every block once
    assert_same_bits(resumed, measured(tmp_path / "whole"))


def test_stopped_in_two_processes_and_resumed_in_one_gives_the_same_bits(tmp_path):
    """One of them alone is told to stop, in the second chunk; both save what they have."""

    def work(rank: int) -> None:
        def interrupt(number: int) -> None:
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        with process_group(CPU) as world, pytest.raises(Interrupted):
            measured(tmp_path / "p", world=world, blocks=numbers(interrupt))

    fork_group(work)
    read: list[int] = []
    resumed = measured(tmp_path / "p", blocks=numbers(read.append))
    assert read
    assert min(read) > 3  # the first chunk is in the sums
    assert_same_bits(resumed, measured(tmp_path / "whole"))


def test_killed_anywhere_nothing_is_counted_twice(tmp_path, monkeypatch):
    """SIGKILL after each save, one after the other."""
    monkeypatch.setattr("mpdit_core.evaluation.progress.SECONDS_BETWEEN_SAVES", 0.0)
    folder = tmp_path / "p"
    for kills in range(14):

        def kill(event, most=kills) -> None:
            if isinstance(event, Progress) and event.done >= min((most + 1) * BLOCK, COUNT):
                os.kill(os.getpid(), signal.SIGKILL)

        child = FORK.Process(target=measured, args=(folder,), kwargs={"report": kill})
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert_same_bits(measured(folder), measured(tmp_path / "whole"))


def test_two_processes_that_are_killed_give_the_same_bits_as_one(tmp_path, monkeypatch):
    """SIGKILL in both, after any number of blocks: the order of the sums does not depend on the kills."""
    monkeypatch.setattr("mpdit_core.evaluation.progress.SECONDS_BETWEEN_SAVES", 0.0)
    folder = tmp_path / "p"
    for most in (1, 2):

        def work(rank: int, most: int = most) -> None:
            read: list[int] = []

            def kill(number: int) -> None:
                read.append(number)
                if len(read) > most or (rank == 1 and len(read) == most):
                    os._exit(9)  # nothing is cleaned up, as by SIGKILL

            with process_group(CPU) as world:
                measured(folder, world=world, blocks=numbers(kill))

        with pytest.raises(AssertionError):
            fork_group(work)
    assert_same_bits(measured(folder), measured(tmp_path / "whole"))


def test_files_of_another_layout_are_not_taken_up(tmp_path, monkeypatch):
    def interrupt(number: int) -> None:
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        measured(tmp_path / "p", blocks=numbers(interrupt))
    assert load_file(tmp_path / "p" / "state.safetensors")["done"] == 4 * BLOCK
    monkeypatch.setattr("mpdit_core.evaluation.progress.FORMAT", 99)
    assert_same_bits(measured(tmp_path / "p"), measured(tmp_path / "whole"))


def arguments(out: str, *more: str) -> list[str]:
    return ["eval-fid", "a.npz", "--reference", "b.npz", "--features", "digits", "--out", out, "--metrics",
            "fid,precision,recall,kid", "--device", "cpu", "--quiet", *more]  # fmt: skip


def record(out: str) -> EvaluationRecord:
    (path,) = Path(out).glob("*.json")
    return EvaluationRecord.read(path)


def test_an_evaluation_by_two_processes_is_that_of_one(here, monkeypatch):
    fork_group(lambda _rank: main(arguments("two")))
    monkeypatch.setenv("MPDIT_CACHE", str(here / "other"))
    assert main(arguments("one")) == 0
    assert [path.suffix for path in Path("two").iterdir()] == [".json"]
    assert record("two").metrics == record("one").metrics


MODEL = ("eval-fid", "m", "--reference", "digits", "--features", "digits", "--num-samples", "120", "--num-steps", "1",
         "--batch-size", "5", "--metrics", "fid,is,precision,recall", "--device", "cpu", "--quiet")  # fmt: skip
SAMPLED = ("eval-fid", "m", "--reference", "b.npz", "--features", "digits", "--num-samples", "60", "--num-steps", "1",
       "--batch-size", "3", "--metrics", "fid", "--device", "cpu", "--quiet")  # fmt: skip


def test_processes_that_measure_different_types_share_the_first_ones(here):
    """`auto` is measured, so ranks may find different types; they work on one record in one type."""
    write_model(here / "m")

    def work(rank: int) -> None:
        found = (torch.float32, torch.bfloat16)[rank]
        for module in ("evaluation.subject", "sampling.generator"):
            vars(sys.modules[f"mpdit_core.{module}"])["choose_dtype"] = lambda *_: found
        assert main([*SAMPLED, "--out", "evals"]) == 0

    fork_group(work)
    sampling = record("evals").sampling
    assert sampling is not None
    assert sampling.dtype == "float32"
    assert [path.suffix for path in Path("evals").iterdir()] == [".json"]  # nobody worked elsewhere


def test_killed_while_it_samples_a_model_it_resumes(here, monkeypatch):
    write_model(here / "m")
    assert main([*MODEL, "--num-samples", "9", "--out", "warm"]) == 0  # so that the reference is measured
    saves = "mpdit_core.evaluation.progress.SECONDS_BETWEEN_SAVES"
    monkeypatch.setattr(saves, 0.0)  # the child saves after every block
    for pattern in ("*.partial/features-*", "*.partial/state*"):
        child = FORK.Process(target=main, args=([*MODEL, "--out", "killed"],))
        child.start()
        wait_until(lambda pattern=pattern: list(Path("killed").glob(pattern)))
        child.kill()
        child.join()
        assert not list(Path("killed").glob("*.json")), "it ended before the kill: make it longer"
    monkeypatch.setattr(saves, 60.0)
    outcome = run(*MODEL[:-1], "--out", "killed", "--json")
    assert any("resuming" in event.get("text", "") for event in outcome.events)
    assert main([*MODEL, "--out", "straight"]) == 0
    assert record("killed").metrics == record("straight").metrics
    assert record("killed").sampling == record("straight").sampling
    assert not list(Path("killed").glob("*.partial"))


def test_stopped_it_exits_with_the_signal_and_resumes(here, monkeypatch):
    def stopping(*given: Any, **more: Any) -> Features:
        os.kill(os.getpid(), signal.SIGTERM)
        return extract(*given, **more)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr("mpdit_core.evaluation.collecting.extract", stopping)
        outcome = run(*arguments("out")[:-1])
    signal.signal(signal.SIGTERM, before)
    assert outcome.code == 128 + signal.SIGTERM
    assert main(arguments("out")) == 0
