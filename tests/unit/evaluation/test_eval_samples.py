"""Evaluations of what other commands wrote: sets of samples, exports, models of the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from eval_helpers import enter_folder, measured, options
from launch import run
from PIL import Image
from sample_helpers import code_of, write_model

from mpdit_core.evaluation import evaluate
from mpdit_core.sampling import SampleOptions, sample

SAMPLING = {"num_steps": 2, "guidance": "skip-tokens", "guidance_scale": 1.5, "seed": 3, "batch_size": 4}
QUICK = {"num_samples": 6, "num_steps": 2, "batch_size": 4, "metrics": ("fid",)}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    write_model(tmp_path / "m")
    return enter_folder(tmp_path, monkeypatch)


def test_a_set_of_samples_gives_the_figures_of_its_model(here):
    metrics = ("fid", "is", "precision", "recall")
    direct = measured("m", "digits", num_samples=11, metrics=metrics, **SAMPLING)
    formats = {
        "png": {},
        "by-class": {"by_class": True},
        "npz": {"format": "npz"},
        "latents": {"format": "latents"},
    }
    for name, more in formats.items():
        sample(SampleOptions(model="m", num_samples=11, out=Path(name), device="cpu", **SAMPLING, **more))
        found = measured(name, "digits", metrics=metrics)
        assert found.count == 11, name
        assert found.metrics == pytest.approx(direct.metrics, rel=1e-6), name  # features know rounding by batch
        assert found.sampling == direct.sampling, name
        assert found.sampling is not None
        assert found.sampling.nfe == 2
        assert found.sampling.passes is not None
        assert 2 < found.sampling.passes < 4
        assert found.model == direct.model, name
    assert (here / "png" / "grid.png").is_file()  # it is there, and was not measured


def test_a_set_of_samples_that_is_not_complete_is_refused(here):
    def code() -> str:
        return code_of(evaluate, options("s", "digits"))

    sample(SampleOptions(model="m", num_samples=6, out=Path("s"), device="cpu", **SAMPLING))
    picture = here / "s" / "images" / "000004.png"
    kept = picture.rename("kept.png")
    assert code() == "not-complete"
    shutil.copy(kept, picture)
    Image.new("RGB", (16, 16)).save(here / "s" / "images" / "of-my-own.png")
    assert code() == "not-complete"
    (here / "s" / "images" / "of-my-own.png").unlink()
    record = here / "s" / "samples.json"
    stored = json.loads(record.read_text())
    stored["samples"]["counts"] = None
    record.write_text(json.dumps(stored))
    assert code() == "not-complete"
    assert not Path("evals").exists()


def test_an_export_is_measured_as_its_run(here):
    write_model(here / "run" / "checkpoints" / "step-0000007")
    assert run("export", "run", "out", "--quiet").code == 0
    from_run, exported = (measured(what, "digits", **QUICK) for what in ("run", "out"))
    assert exported.metrics == from_run.metrics
    assert exported.sampling == from_run.sampling
    assert exported.model is not None
    assert exported.model.model_copy(update={"path": from_run.model and from_run.model.path}) == from_run.model
    assert from_run.path.parent == Path("run/evals")
    assert exported.path.parent == Path("evals")  # the export stays as it was
    assert not (here / "out" / "evals").exists()


def test_a_model_in_the_home_of_the_user_is_found(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert measured("~/m", "digits", **QUICK).metrics == measured("m", "digits", **QUICK).metrics


def test_a_model_of_the_hub_is_measured_by_its_address(here, monkeypatch):
    """The download itself is tested with the Hub's."""
    monkeypatch.setattr("mpdit_core.models.model_folder.download_model", lambda address: here / "m")
    found = measured("hf:me/tiny", "digits", **QUICK)
    assert found.what == "hf:me/tiny"
    assert found.metrics == measured("m", "digits", **QUICK).metrics
