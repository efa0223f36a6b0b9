"""Snapshots of the power-function EMAs during a training: the same bytes whatever happens to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ema_helpers import joined
from safetensors.torch import load_file
from train_helpers import assert_same_run, options, run_to_end

from mpdit_core.errors import UserError
from mpdit_core.models.ema_snapshots import at_ema_width
from mpdit_core.models.model_folder import open_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.reporting import Warning
from mpdit_core.training.hooks import ema_snapshots
from mpdit_core.training.state.trainer import Trainer

TRACKED = ("train.ema_widths=[0.05,0.1]", "train.ema_snapshot_every=3")


def snapshots_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "ema").iterdir()}


@pytest.fixture(scope="module")
def straight(latents, tmp_path_factory) -> Path:
    """Sixteen steps without an interruption."""
    run = tmp_path_factory.mktemp("straight") / "run"
    run_to_end(options(latents, run, *TRACKED, steps=16))
    return run


def test_snapshots_are_written_in_turn_and_after_the_last_step(straight):
    assert RunFolder(straight).ema_snapshot_steps() == [3, 6, 9, 12, 15, 16]


def test_the_last_snapshot_is_the_average_of_the_checkpoint(straight):
    checkpoint = open_model(straight)
    for width in (0.05, 0.1):
        exact = joined(load_file(checkpoint.path / f"power-{width}.safetensors"))
        found = joined(at_ema_width(checkpoint, width).weights())
        assert (found - exact).norm() < 2.0**-11 * exact.norm()


def test_the_first_update_takes_the_weights_as_they_are(latents, tmp_path):
    run_to_end(options(latents, tmp_path / "run", *TRACKED, steps=1))
    checkpoint = RunFolder(tmp_path / "run").checkpoint(1)
    training = load_file(checkpoint / "training.safetensors")
    for name, average in load_file(checkpoint / "power-0.1.safetensors").items():
        assert torch.equal(average, training[f"weights.{name}"])


def test_stopped_and_resumed_gives_the_same_bytes(latents, straight, tmp_path):
    """Stopped at a step without a snapshot of its own, and killed with snapshots later than the checkpoint."""
    run = RunFolder(tmp_path / "run")
    run_to_end(options(latents, run.path, *TRACKED, "train.checkpoint_every=5", steps=10))
    run.ema_snapshot(10).unlink()  # of the last step then, which is none of the longer run's
    run.ema_snapshot(20).write_bytes(b"of a future that is gone")
    run_to_end(options(latents, run.path, *TRACKED, steps=16))
    assert snapshots_of(run.path) == snapshots_of(straight)
    assert_same_run(run.path, straight)


def test_a_snapshot_that_a_kill_prevented_is_made_up(latents, straight, tmp_path):
    run = RunFolder(tmp_path / "run")
    for steps in (12, 16):
        run_to_end(options(latents, run.path, *TRACKED, steps=steps))
        run.ema_snapshot(steps).unlink()  # the checkpoint of this step was written first
    run_to_end(options(latents, run.path, *TRACKED, steps=16))
    assert snapshots_of(run.path) == snapshots_of(straight)


def test_after_a_rollback_no_snapshot_is_of_the_steps_undone(latents, tmp_path, monkeypatch):
    step, found = Trainer.step, []

    def fail_once(self, batch):
        numbers = step(self, batch)
        if self.position.step == 8 and not self.position.skipped:
            found.extend(RunFolder(tmp_path / "run").ema_snapshot_steps())
            return numbers | {"loss": torch.tensor(float("nan"))}
        if self.position.step == 5 and self.position.skipped:
            found.append(RunFolder(tmp_path / "run").ema_snapshot_steps())
        return numbers

    monkeypatch.setattr(Trainer, "step", fail_once)
    run_to_end(options(latents, tmp_path / "run", *TRACKED, "train.on_nonfinite=rollback", steps=9))
    assert found[-1] == [3]  # the checkpoint was of step 4, step 6 had a snapshot
    assert RunFolder(tmp_path / "run").ema_snapshot_steps() == [3, 6, 9]


def test_a_full_disk_costs_a_snapshot_and_nothing_else(latents, straight, tmp_path, monkeypatch):
    write = ema_snapshots.write_snapshot

    def write_at_times(path, averages):
        if path.name == "step-0000006.safetensors":
            raise UserError("no space", code="disk-full")
        write(path, averages)

    monkeypatch.setattr(ema_snapshots, "write_snapshot", write_at_times)
    events = run_to_end(options(latents, tmp_path / "run", *TRACKED, steps=16))
    assert [event.code for event in events if isinstance(event, Warning)] == ["ema-snapshot-not-written"]
    assert RunFolder(tmp_path / "run").ema_snapshot_steps() == [3, 9, 12, 15, 16]
    assert_same_run(tmp_path / "run", straight)


def test_by_default_there_are_32_in_a_run(latents, tmp_path):
    run_to_end(options(latents, tmp_path / "run", "train.ema_widths=[0.1]", steps=64))
    assert RunFolder(tmp_path / "run").ema_snapshot_steps() == list(range(2, 65, 2))
