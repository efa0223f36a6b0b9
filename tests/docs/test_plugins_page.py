"""docs/plugins.md from its top to its end: files written, tests run, commands called."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from pathlib import Path

import pytest
from launch import succeed
from pages import Step, steps
from plugin_site import write_metadata
from sample_helpers import write_model

SMALL = {"sample": ("-n", "12"), "eval-fid": ("--metrics", "fid")}


def install(folder: Path) -> None:
    """Does what `pip install -e` does, but offline: metadata from pyproject.toml, the folder on the path."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    write_metadata(folder, project["name"], project["entry-points"], version=project["version"])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    write_model(Path("runs/digits-1/checkpoints/step-0000007"))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def follow(step: Step, folder: Path) -> dict:
    """Does what the page says, and returns the result of a command."""
    if step.file:
        Path(step.file).write_text(step.text)
        if step.file.startswith("test_"):
            run_tests(Path(step.file).stem)
    elif step.text == "pip install -e .":
        install(folder)
    elif step.language == "command":
        words = step.words[1:]
        device = () if words[0] == "plugins" else ("--device", "cpu")
        return succeed(*words, *SMALL.get(words[0], ()), *device, "--json").result
    return {}


def run_tests(module: str) -> None:
    tests = [check for key, check in vars(importlib.import_module(module)).items() if key.startswith("test_")]
    assert tests
    for check in tests:
        check()


def test_every_step_of_the_page_works(here: Path):
    results = [follow(step, here) for step in steps("docs/plugins.md")]
    samples = [made["sampler"]["options"] for made in results if "sampler" in made]
    assert [(options["num_steps"], options["power"]) for options in samples] == [(10, 2), (25, 2)]
    assert [made["count"] for made in results if "shards" in made] == [60, 40, 40]
    assert sorted(p.name for p in here.glob("mpdit-*")) == [
        "mpdit-colours", "mpdit-count-files", "mpdit-fast", "mpdit-huber", "mpdit-scans", "mpdit-wavelets",
    ]  # fmt: skip
    assert json.loads((here / "latents/mine-16/manifest.json").read_text())
