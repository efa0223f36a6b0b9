"""What the shell is offered: presets, samplers, runs and other folders here, class names of the model given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from launch import run
from sample_helpers import write_model

from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import load_preset


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A run, a model and samples of it."""
    root = tmp_path_factory.mktemp("work")
    model = write_model(root / "models" / "a")
    assert model.latents is not None
    RunFolder(root / "runs" / "tiny-1").write(load_preset("tiny"), model.latents)
    for place in ("samples/a-1/samples.json", "latents/l/manifest.json"):
        (root / place).parent.mkdir(parents=True)
        (root / place).touch()
    return root


def offered(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What bash is offered for the last word of `line`."""
    monkeypatch.setenv("_MPDIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    outcome = run()
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out.split()


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("mpdit sa", ["sample"]),
        ("mpdit train --preset xl-", ["xl-256", "xl-512", "xl-1024"]),
        ("mpdit train --run ", ["runs/tiny-1"]),
        ("mpdit train --latents ", ["latents/l"]),
        ("mpdit sample runs/tiny-1 --sampler heun", ["heun", "heun-sde"]),
        ("mpdit sample ", ["runs/tiny-1", "models/a"]),
        ("mpdit eval-fid ", ["runs/tiny-1", "models/a", "samples/a-1"]),
        ("mpdit eval-fid runs/tiny-1 --features inc", ["inception"]),
        ("mpdit sample runs/tiny-1 --classes t", ["two", "three"]),
        ("mpdit sample models/a -n 3 --classes three,t", ["three,two", "three,three"]),
        ("mpdit sample models/a --classes 5", ["5"]),  # its name has spaces and a comma
        ("mpdit sample nowhere --classes a", ["all"]),
        ("mpdit sample --classes a", ["all"]),
    ],
)
def test_what_is_offered(work: Path, monkeypatch: pytest.MonkeyPatch, line: str, values: list[str]):
    monkeypatch.chdir(work)
    assert offered(monkeypatch, line) == values


def test_of_a_damaged_run_no_class_is_offered(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(work / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "tiny-1" / "run.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    assert offered(monkeypatch, "mpdit sample runs/tiny-1 --classes ") == ["all", "random"]
