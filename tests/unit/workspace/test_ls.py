"""`mpdit ls`: each kind with what it says of itself, the newest first; what is damaged is listed, and never raises."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import refused
from eval_helpers import measured, pictures
from launch import run_python, succeed
from sample_helpers import run_sample, write_model
from train_helpers import options, run_to_end

from mpdit_cli.commands.ls import age
from mpdit_core.evaluation import EvaluationRecord
from mpdit_core.workspace import Entry, ListOptions, list_workspace


@pytest.fixture(scope="module")
def work(tmp_path_factory, latents: Path) -> Path:
    """A folder with latents, a run of 8 steps with two evaluations and a sweep, and samples; in this order of time."""
    root = tmp_path_factory.mktemp("work")
    shutil.copytree(latents, root / "latents" / "squares")
    evals = root / "runs" / "tiny-1" / "evals"
    run_to_end(options(latents, evals.parent))
    for number in (0, 1):
        np.savez(root / f"{number}.npz", arr_0=pictures(12, seed=number))
    record = measured(str(root / "0.npz"), str(root / "1.npz"), out=evals, metrics=("fid",))
    better = record.model_copy(update={"metrics": {**record.metrics, "frechet_distance": 0.5}})
    better.write(evals / "better.json")
    (evals / "sweep-1.json").write_text("{}")
    run_sample(write_model(root / "a-model"), out=root / "samples" / "a-1")
    for age_of, folder in enumerate(("samples/a-1", "runs/tiny-1", "latents/squares")):
        for file in (root / folder).rglob("*"):
            os.utime(file, (1e9 - age_of, 1e9 - age_of))
    return root


def entries(folder: Path) -> dict[str, Entry]:
    """By path within the folder, in the order of the list."""
    listed = list_workspace(ListOptions(folder=folder))
    assert listed.damaged == sum(entry.status == "damaged" for entry in listed.entries)
    return {str(entry.path.relative_to(folder)): entry for entry in listed.entries}


@pytest.fixture
def copy(work: Path, tmp_path: Path) -> Path:
    """To damage."""
    return shutil.copytree(work, tmp_path / "copy")


def test_everything_is_listed_with_what_it_says_of_itself(work: Path):
    found = entries(work)
    assert [entry.kind for entry in found.values()] == ["samples", "run", "evaluation", "evaluation", "latents"]
    assert {entry.status for entry in found.values()} == {"ok"}
    run, samples, latents = (found[name] for name in ("runs/tiny-1", "samples/a-1", "latents/squares"))
    assert (run.preset, run.step, run.images_seen, run.changed) == ("tiny", 8, 64, "2001-09-09T01:46:39+00:00")
    assert run.loss is not None
    assert (run.distance, run.distance_name) == (0.5, "digits")  # the lowest
    assert (samples.preset, samples.step, samples.images) == ("tiny", 7, 10)
    assert samples.about == "euler, 4 steps, guidance scale 2"
    assert (latents.images, latents.about) == (32, "16 px, 1 × 16 × 16, 4 classes")
    assert all(entry.bytes > 1000 for entry in found.values())
    assert len(entries(work / "runs" / "tiny-1")) == 3  # the run itself, and its evaluations


def test_the_runs_of_a_sweep_are_listed_each(copy: Path):
    sweep = copy / "runs" / "sweep-1"
    for seed in (0, 1):
        shutil.copytree(copy / "runs/tiny-1", sweep / f"seed{seed}")
    (sweep / "sweep.json").write_text("{}")
    kinds = {path: entry.kind for path, entry in entries(copy).items() if path.startswith("runs/sweep-1")}
    assert {path for path, kind in kinds.items() if kind == "run"} == {"runs/sweep-1/seed0", "runs/sweep-1/seed1"}
    assert entries(sweep).keys() == {path.removeprefix("runs/sweep-1/") for path in kinds}


DAMAGE = {
    "runs/tiny-1/run.json": "{",
    "runs/tiny-1/config.toml": "[",
    "runs/tiny-1/checkpoints/step-0000008/model.safetensors": "torn",
    "runs/tiny-1/evals/better.json": "{}",
    "samples/a-1/samples.json": '{"format": 2}',
    "latents/squares/manifest.json": "[]",
    "latents/squares/shard-00000.safetensors": "",
}


@pytest.mark.parametrize("file", DAMAGE)
def test_what_is_damaged_is_listed_as_such(copy: Path, file: str):
    (copy / file).write_text(DAMAGE[file])
    (entry,) = (entry for entry in entries(copy).values() if entry.status == "damaged")
    assert (copy / file).is_relative_to(entry.path)
    assert entry.problem
    text = succeed("ls", copy).out
    assert f"damaged: {entry.problem}".split("\n")[0][:60] in text


def test_what_was_stopped_is_unfinished(copy: Path):
    record = json.loads((copy / "samples/a-1/samples.json").read_text())
    record["samples"]["counts"] = None
    (copy / "samples/a-1/samples.json").write_text(json.dumps(record))
    latents = copy / "latents/squares"
    (latents / "encoding").mkdir()
    (latents / "manifest.json").rename(latents / "encoding" / "plan.json")
    found = entries(copy)
    assert {found["samples/a-1"].status, found["latents/squares"].status} == {"unfinished"}


def test_a_run_that_logged_nothing_has_no_figures(copy: Path):
    (copy / "runs/tiny-1/metrics.jsonl").unlink()
    shutil.rmtree(copy / "runs/tiny-1/evals")
    shutil.rmtree(copy / "runs/tiny-1/checkpoints")
    run = entries(copy)["runs/tiny-1"]
    assert (run.status, run.step, run.loss, run.distance) == ("ok", None, None, None)


def test_a_run_that_was_stopped_between_two_lines_has_the_step_that_it_saved(copy: Path):
    metrics = copy / "runs/tiny-1/metrics.jsonl"
    for kept, loss in ((3, True), (0, False)):
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:kept]))
        run = entries(copy)["runs/tiny-1"]
        assert (run.step, run.images_seen, run.loss is not None) == (8, 64, loss)


def test_a_distance_of_0_is_the_lowest(copy: Path):
    path = copy / "runs/tiny-1/evals/better.json"
    record = EvaluationRecord.read(path)
    record.model_copy(update={"metrics": {**record.metrics, "frechet_distance": 0.0}}).write(path)
    assert entries(copy)["runs/tiny-1"].distance == 0


def test_links_that_cannot_be_followed_are_passed_over(copy: Path):
    before = entries(copy)
    (copy / "long").symlink_to("a" * 300)
    (copy / "loop").symlink_to("loop")
    assert entries(copy) == before


def test_fid_wins_over_a_distance_in_other_features(copy: Path):
    path = copy / "runs/tiny-1/evals/better.json"
    EvaluationRecord.read(path).model_copy(update={"is_fid": True}).write(path)
    assert entries(copy)["runs/tiny-1"].distance_name == "FID"


def test_the_command_needs_no_torch_and_says_what_to_do_first(work: Path, tmp_path: Path):
    done = run_python("-X", "importtime", "-m", "mpdit_cli", "ls", work)
    assert done.code == 0
    assert "runs/tiny-1" in done.out
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "mpdit demo" in succeed("ls", tmp_path).out
    assert succeed("ls", tmp_path, "--json").result["entries"] == []
    with refused("no-such-folder"):
        list_workspace(ListOptions(folder=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (61, "1 min"), (7200, "2 h"), (86400, "1 day"), (86400 * 9, "9 days"), (-5, "0 s")],
)
def test_age(seconds: float, text: str):
    assert age(seconds) == text
