"""Training: what a run leaves, the same bits whatever interrupts it, and what happens when its numbers go bad."""

from __future__ import annotations

import errno
import json
import math
import shutil
from functools import reduce

import pytest
import torch
from data_helpers import refused
from latents_fixture import make_latents
from precision_helpers import make_auto_mean
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from train_helpers import assert_same_run, metrics_of, options, run_to_end, state_of, train_and_watch

from mpdit_core.data.latents import LatentFolder
from mpdit_core.errors import UserError
from mpdit_core.models import model_folder
from mpdit_core.models.model_folder import find_checkpoints, load_model, open_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import load_preset, preset_names
from mpdit_core.reporting import Note, Saved, Step, Warning
from mpdit_core.runtime import files, locks
from mpdit_core.training import train
from mpdit_core.training.batches import Batch, BatchSource
from mpdit_core.training.hooks import previews
from mpdit_core.training.state.trainer import Trainer


@pytest.fixture(scope="module")
def straight(latents, tmp_path_factory):
    """24 steps in one go."""
    run = tmp_path_factory.mktemp("straight") / "run"
    run_to_end(options(latents, run, steps=24))
    return run


def codes(events) -> list[str]:
    return [event.code for event in events if isinstance(event, Warning)]


def test_events_files_and_result(latents, tmp_path):
    run = tmp_path / "run"
    result, events = train_and_watch(options(latents, run, "preview.every=4", steps=8))
    steps = [e for e in events if isinstance(e, Step)]
    assert [s.step for s in steps] == list(range(1, 9))
    assert steps[-1].images_seen == 64
    assert {e.what for e in events if isinstance(e, Saved)} == {"checkpoint", "preview"}
    assert (result.run, result.step, result.images_seen, result.loss) == (run, 8, 64, steps[-1].loss)
    assert result.checkpoint == run / "checkpoints" / "step-0000008"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-0000004", "step-0000008"]
    assert {p.name for p in (run / "samples").iterdir()} == {
        "step-0000004.png", "step-0000004-raw.png", "step-0000008.png", "step-0000008-raw.png", "training.gif",
    }  # fmt: skip
    opened = open_model(run)
    mean = reduce(lambda mean, step: 0.99 * mean + 0.01 * step.loss, steps[1:], steps[0].loss)
    assert opened.extra["position"]["loss_mean"] == pytest.approx(mean)
    assert opened.config.model.num_classes == 4  # the latents' classes, not the preset's
    assert opened.latents
    assert opened.latents.class_names == ("blue", "green", "red", "white")
    velocity = load_model(run)(torch.randn(2, 1, 16, 16), torch.tensor([0.5]), torch.tensor([0, 4]))
    assert velocity.shape == (2, 1, 16, 16)
    assert torch.isfinite(velocity).all()


def test_the_first_loss_is_that_of_a_network_that_says_zero(latents, tmp_path):
    """The output layer starts at zero, so the first loss is the mean of the squared target: about 1 + the variance."""
    run = tmp_path / "run"
    run_to_end(options(latents, run, steps=1))
    batch = BatchSource(LatentFolder(latents), RunFolder(run).config()).batch(0)
    expected = (batch.noise - batch.latents).square().mean().item()
    assert metrics_of(run)[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(2.604, abs=0.001)  # for seed 0


def test_it_learns(latents, tmp_path):
    run_to_end(options(latents, tmp_path / "run", "train.learning_rate=4e-3", "train.batch_size=16", steps=120))
    losses = [m["loss"] for m in metrics_of(tmp_path / "run")]
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])


def test_stopped_and_resumed_is_bit_equal(latents, straight, tmp_path):
    run = tmp_path / "run"
    for steps in (3, 8, 24):  # 3: between two checkpoints
        run_to_end(options(latents, run, steps=steps))
    assert_same_run(run, straight)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_resumed_run_keeps_the_precision_it_began_with(latents, tmp_path, monkeypatch, name):
    other = {"float32": "bfloat16", "bfloat16": "float32"}[name]
    make_auto_mean(monkeypatch, name)
    run_to_end(options(latents, tmp_path / "whole", steps=8))
    run_to_end(options(latents, tmp_path / "run", steps=4))
    make_auto_mean(monkeypatch, other)  # the machine is busy with something else now
    run_to_end(options(latents, tmp_path / "run", steps=8))
    assert RunFolder(tmp_path / "run").config().train.precision == name
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    file = tmp_path / "as-it-began.toml"
    file.write_text('train.precision = "auto"\n')
    again = options(latents, tmp_path / "run", steps=10).model_copy(update={"config": file})
    run_to_end(again)
    assert RunFolder(tmp_path / "run").config().train.precision == name
    run_to_end(options(latents, tmp_path / "run", "train.precision=auto", steps=12))  # told otherwise
    assert RunFolder(tmp_path / "run").config().train.precision == other


def test_several_ema_rates_and_their_files(latents, tmp_path):
    rates = ("train.ema_decays=[0.9, 0.5]", "train.ema_warmup=false")
    run_to_end(options(latents, tmp_path / "a", *rates, steps=8))
    run_to_end(options(latents, tmp_path / "b", *rates, steps=4))
    run_to_end(options(latents, tmp_path / "b", *rates, steps=8))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    newest = find_checkpoints(tmp_path / "a")[0][-1]
    assert not torch.equal(
        load_file(newest / "ema-0.5.safetensors")["head.linear.weight"],
        load_file(newest / "model.safetensors")["head.linear.weight"],
    )


def test_accumulation_equals_one_part(latents, straight, tmp_path):
    run_to_end(options(latents, tmp_path / "run", "train.accumulation=2", steps=8))
    parts, whole = ([m["loss"] for m in metrics_of(run)[:8]] for run in (tmp_path / "run", straight))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_torn_checkpoint_is_named_and_passed_over(latents, tmp_path):
    run = tmp_path / "run"
    run_to_end(options(latents, run, steps=8))
    newest = run / "checkpoints" / "step-0000008" / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    events = run_to_end(options(latents, run, steps=12))
    assert codes(events) == ["damaged-checkpoint"]
    assert any("step-0000008" in event.text for event in events if isinstance(event, Warning))
    assert any("step-0000004" in event.text for event in events if isinstance(event, Note))
    run_to_end(options(latents, tmp_path / "straight", steps=12))
    assert_same_run(tmp_path / "straight", run)


def test_a_flipped_bit_is_named_and_its_checkpoint_passed_over(latents, straight, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run_to_end(options(latents, run, steps=8))
    newest = run / "checkpoints" / "step-0000008" / "training.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-100] ^= 1
    newest.write_bytes(damaged)
    events = run_to_end(options(latents, run, steps=24))
    assert codes(events) == ["damaged-checkpoint"]
    assert any(str(newest) in event.text for event in events if isinstance(event, Warning))
    assert_same_run(run, straight)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])  # the others: test_files.py
def test_a_disk_that_takes_nothing_for_a_while_does_not_end_the_run(latents, straight, tmp_path, monkeypatch, number):
    """Checkpoints and metrics are given up with a warning; when there is room again, nothing is missing."""
    save, append, step = model_folder.save_file, RunFolder.append_metrics, 0

    def fail_at_times(*arguments, **options):
        if 3 <= step < 6:
            raise SafetensorError(f"Error while serializing: I/O error: Os {{ code: {number} }}")
        save(*arguments, **options)

    def append_at_times(self, *lines):
        nonlocal step
        step = lines[-1]["step"]
        with files.user_errors(self.path):
            if 3 <= step < 6:
                raise OSError(number, "the disk")
        append(self, *lines)

    monkeypatch.setattr(model_folder, "save_file", fail_at_times)
    monkeypatch.setattr(RunFolder, "append_metrics", append_at_times)
    events = run_to_end(options(latents, tmp_path / "run", steps=24))
    assert sorted(codes(events)) == ["checkpoint-not-written", "metrics-not-written"]
    assert_same_run(tmp_path / "run", straight)


def test_a_disk_that_stays_full_is_an_error_at_the_end(latents, tmp_path, monkeypatch):
    def refuse(self, *lines):
        raise UserError("no space", code="disk-full")

    monkeypatch.setattr(RunFolder, "append_metrics", refuse)
    with refused("disk-full"):
        run_to_end(options(latents, tmp_path / "run", steps=5))
    assert open_model(tmp_path / "run").step == 5


@pytest.mark.parametrize("settings", [(), ("train.checkpoint_every=3", "train.log_every=2"), ("preview.every=3",)])
def test_a_run_that_is_removed_ends_with_one_message(latents, tmp_path, settings):
    run = tmp_path / "run"

    def remove(event):
        if isinstance(event, Step) and event.step == 2:
            shutil.rmtree(run)

    with refused("no-such-folder"):
        train(options(latents, run, *settings, steps=50), report=remove)


@pytest.mark.parametrize(
    "assignment",
    ["model.width=10000000", "model.stages=[[4, 1000000000]]", "train.batch_size=1000000000000",
     "train.batch_size=1000000000001", "model.width=0xffffffffffffffffffffffff", "train.optimizer.betas=[nan, 0.9]"],
)  # fmt: skip
def test_what_no_machine_can_hold_is_refused_at_once(latents, tmp_path, assignment):
    with pytest.raises(UserError) as refused:
        run_to_end(options(latents, tmp_path / "run", assignment, steps=1))
    assert refused.value.code in ("too-large", "invalid-value", "batch-not-divisible")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["training.safetensors", "model.safetensors"])
def test_renamed_tensors_of_a_checkpoint_are_refused(latents, tmp_path, monkeypatch, name):
    monkeypatch.setenv("MPDIT_VERIFY", "off")
    run = tmp_path / "run"
    run_to_end(options(latents, run, steps=2))
    file = run / "checkpoints" / "step-0000002" / name
    state = load_file(file)
    key = max(state)
    state["no-" + key] = state.pop(key)
    save_file(state, file)
    with refused("damaged-file"):
        run_to_end(options(latents, run, steps=4))


@pytest.mark.parametrize(
    "position", [None, [], {"step": -1}, {"step": "many"}, {"step": 2, "skipped": [[5]]}, {"step": 1, "else": 1}]
)
def test_an_impossible_position_of_a_checkpoint_is_refused(latents, tmp_path, position):
    run = tmp_path / "run"
    run_to_end(options(latents, run, steps=2))
    about = run / "checkpoints" / "step-0000002" / "config.json"
    values = json.loads(about.read_text())
    values["extra"]["position"] = position
    about.write_text(json.dumps(values))
    with pytest.raises(UserError) as refused:
        run_to_end(options(latents, run, steps=4))
    assert refused.value.code == "damaged-file"


def test_a_run_without_a_checkpoint_begins_again_from_its_model(latents, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    run_to_end(options(latents, first, steps=4))
    begin = options(latents, again, "train.learning_rate=1e-9", steps=1).model_copy(update={"init_from": str(first)})
    run_to_end(begin)
    whole = state_of(again)
    shutil.rmtree(again / "checkpoints")  # as after a kill before the first one
    run_to_end(options(latents, again, "train.learning_rate=1e-9", steps=1))
    assert all(torch.equal(value, whole[name]) for name, value in state_of(again).items())


def test_a_run_whose_model_does_not_fit_leaves_no_run(latents, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    run_to_end(options(latents, first, steps=1))
    wide = options(latents, other, "model.width=64", "model.num_heads=4", steps=1)
    with refused("does-not-fit"):
        run_to_end(wide.model_copy(update={"init_from": str(first)}))
    assert not RunFolder.exists(other)
    assert RunFolder.is_free(other)


def test_previews_that_are_no_pictures_are_left_out(latents, tmp_path):
    run = tmp_path / "run"
    run_to_end(options(latents, run, "preview.every=2", steps=2))
    (run / "samples" / "step-0000001.png").write_bytes(b"no picture")
    (run / "samples" / "step-abc.png").write_bytes(b"no picture")
    torn = run / "samples" / "step-0000002.png"
    torn.write_bytes(torn.read_bytes()[:-200])
    events = run_to_end(options(latents, run, "preview.every=2", steps=8))
    assert codes(events) == ["damaged-preview", "damaged-preview"]  # each is told once
    assert (run / "samples" / "training.gif").exists()


def test_a_run_without_a_checkpoint_starts_again(latents, straight, tmp_path):
    run = tmp_path / "run"
    RunFolder(run).write(RunFolder(straight).config(), RunFolder(straight).latents())
    RunFolder(run).append_metrics({"step": 1, "loss": 9.0})
    assert codes(run_to_end(options(latents, run, steps=24))) == ["no-checkpoint"]
    assert_same_run(run, straight)


def test_what_a_killed_process_left_goes(latents, straight, tmp_path):
    run = tmp_path / "run"
    for name in (
        "checkpoints/.step-0000004.0123abcd.part",
        "checkpoints/.shards.0123abcd.part",
        "evals/.a.json.0.part",
    ):
        (run / name).mkdir(parents=True)
    leftover = run / "samples" / ".step-0000004.png.0123abcd.part"
    leftover.parent.mkdir()
    leftover.touch()
    RunFolder(run).write(RunFolder(straight).config(), RunFolder(straight).latents())
    run_to_end(options(latents, run, steps=4))
    assert not list(run.rglob(".*.part"))


def test_fewer_steps_than_done_are_refused_and_change_nothing(latents, straight):
    before = (straight / "config.toml").read_bytes(), (straight / "metrics.jsonl").read_bytes()
    with refused("nothing-to-train"):
        run_to_end(options(latents, straight, steps=1))
    assert ((straight / "config.toml").read_bytes(), (straight / "metrics.jsonl").read_bytes()) == before


def test_a_finished_run_says_that_there_is_nothing_to_train(latents, straight, monkeypatch):
    monkeypatch.setattr(Trainer, "state", None)  # nothing is copied for a checkpoint that exists
    result, events = train_and_watch(options(latents, straight, steps=24))
    assert codes(events) == ["nothing-to-train"]
    assert (result.step, result.loss) == (24, None)
    assert result.checkpoint == straight / "checkpoints" / "step-0000024"


def test_another_configuration_is_refused_with_the_difference(latents, straight):
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.001 → 0\.5") as refused:
        run_to_end(options(latents, straight, "train.learning_rate=0.5", steps=24))
    assert refused.value.code == "different-configuration"


def test_other_latents_are_refused(straight, tmp_path):
    with refused("different-latents"):
        run_to_end(options(make_latents(tmp_path, per_class=3), straight, steps=24))


def test_a_second_training_of_the_same_run_is_refused_and_told_who_trains(latents, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SECONDS", 0.01)
    run = tmp_path / "run"
    with locks.locked(run), pytest.raises(UserError, match=r"process \d+ on ") as refused:
        run_to_end(options(latents, run, steps=1))
    assert refused.value.code == "folder-in-use"
    assert not (run / "config.toml").exists()


def poison(monkeypatch, image: int) -> None:
    """NaN for one image of the latents, wherever it is in a batch."""
    batch_of = BatchSource.batch

    def poisoned(self: BatchSource, step: int) -> Batch:
        batch = batch_of(self, step)
        for row, index in enumerate(self.indices(step)):
            if index == image:
                batch.latents[row] = math.nan
        return batch

    monkeypatch.setattr(BatchSource, "batch", poisoned)


def test_stops_at_a_bad_step_and_keeps_the_evidence(latents, tmp_path, monkeypatch):
    poison(monkeypatch, 5)
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"step \d+.*nan") as stopped:
        run_to_end(options(latents, run, steps=8))
    assert stopped.value.code == "diverged"
    evidence = json.loads(next(run.glob("bad-step-*.json")).read_text())
    assert 5 in evidence["indices"]
    assert len(evidence["indices"]) == 8
    assert evidence["step"] <= 4  # image 5 is in the first pass over the 32 images


def test_rollback_goes_back_and_leaves_the_bad_batches_out(latents, tmp_path, monkeypatch):
    poison(monkeypatch, 5)
    run = tmp_path / "run"
    assignments = ('train.on_nonfinite="rollback"', "train.checkpoint_every=1")
    events = run_to_end(options(latents, run, *assignments, steps=12))
    back = codes(events)
    assert back == ["rolled-back"] * len(back)
    assert len(back) >= 3  # once in every pass over the data
    assert [m["step"] for m in metrics_of(run)] == list(range(1, 13))
    assert all(torch.isfinite(t).all() for t in state_of(run).values())
    position = open_model(run).extra["position"]
    assert len(position["skipped"]) == len(back)
    losses = [line["loss"] for line in metrics_of(run)]  # of good steps alone
    assert position["loss_mean"] == pytest.approx(reduce(lambda mean, loss: 0.99 * mean + 0.01 * loss, losses))


def test_rollback_without_a_checkpoint_goes_to_the_start(latents, tmp_path, monkeypatch):
    poison(monkeypatch, 5)
    run = tmp_path / "run"
    assignments = ('train.on_nonfinite="rollback"', "train.checkpoint_every=100")
    events = run_to_end(options(latents, run, *assignments, steps=4))
    assert set(codes(events)) == {"rolled-back"}
    assert [m["step"] for m in metrics_of(run)] == [1, 2, 3, 4]


def test_a_run_that_cannot_get_past_its_bad_steps_stops(latents, tmp_path, monkeypatch):
    bad = torch.tensor(math.nan)
    monkeypatch.setattr(Trainer, "step", lambda self, batch: {"loss": bad, "grad_norm": bad})
    with refused("diverged"):
        run_to_end(options(latents, tmp_path / "run", 'train.on_nonfinite="rollback"', steps=4))


def test_old_checkpoints_go_and_milestones_stay(latents, tmp_path):
    run = tmp_path / "run"
    run_to_end(options(latents, run, "train.keep_last=1", "train.keep_every=8", steps=20))
    assert [p.name for p in find_checkpoints(run)[0]] == ["step-0000008", "step-0000016", "step-0000020"]


def test_a_preview_that_fails_does_not_stop_the_run(latents, tmp_path, monkeypatch):
    def refuse(picture, path):
        raise UserError("no space", code="disk-full")

    monkeypatch.setattr(previews, "save_png", refuse)
    result, events = train_and_watch(options(latents, tmp_path / "run", "preview.every=2", steps=2))
    assert result.step == 2
    assert codes(events) == ["preview-failed"]


@pytest.mark.parametrize("name", [n for n in preset_names() if n.startswith("ablation")] + ["v2-b-512", "b-256"])
def test_every_ablation_trains(latents, tmp_path, name):
    """The preset's switches and kinds of stages, at a size for a test."""
    model = load_preset(name).model
    small = [[stage.patch_size, 1] for stage in model.stages]
    assignments = ["resolution=16", "model.width=32", "model.num_heads=2", f"model.stages={small}"]
    assignments += ["train.batch_size=8", "train.log_every=1", "model.input_size=16"]
    run_to_end(options(latents, tmp_path / "run", *assignments, preset=name, steps=2))
    trained = open_model(tmp_path / "run").config.model
    for switch in ("modulation", "class_tokens", "time_embedding", "skip"):
        assert getattr(trained, switch) == getattr(model, switch)
    first, second = (m["loss"] for m in metrics_of(tmp_path / "run"))
    assert first == pytest.approx(2.604, abs=0.001)  # the same batch for all, and an output of zero
    assert second == pytest.approx(1.733, abs=0.01)
