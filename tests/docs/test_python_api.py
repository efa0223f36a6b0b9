"""The Python in README.md and the pages of docs/ runs, block after block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from launch import succeed
from pages import PAGES, python_blocks
from sample_helpers import write_model

RUN = Path("runs/digits-1/checkpoints/step-0000007")
SMALLER = {"steps=1200": "steps=4", "num_samples=500": "num_samples=12", "num_samples=1000": "num_samples=12"}
"""The pages show realistic numbers; the test uses smaller ones."""

TESTED_HERE = {"README.md", "docs/python-api.md", "docs/ecosystem.md", "docs/plugins.md", "docs/flow-matching.md"}


def run_blocks(blocks: list[str], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """The names that the blocks define, executed one after the other in one module."""
    names = {} if names is None else names
    for block in blocks:
        for written, smaller in SMALLER.items():
            block = block.replace(written, smaller)
        exec(compile(block, "page", "exec"), names)
    return names


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_no_page_with_python_is_left_out():
    assert {page for page in PAGES if python_blocks(page)} <= TESTED_HERE


def test_the_readme_s_images(here):
    write_model(RUN)
    (block,) = [block for block in python_blocks("README.md") if "Generator" in block]
    names = run_blocks([block])
    assert [image.size for image in names["images"]] == [(16, 16)] * 2


def test_the_flow_between_noise_and_three_images(capsys):
    torch.manual_seed(0)
    names = run_blocks(python_blocks("docs/flow-matching.md"))
    assert sum(names["counts"]) == 1000
    assert all(280 < count < 390 for count in names["counts"])


def test_every_job_of_the_page(here, capsys):
    blocks = python_blocks("docs/python-api.md")
    jobs = ("encode_latents", "train", "sample", "evaluate", "profile_flops", "Generator", "export_model")
    assert all(any(f"import {job}" in block or f", {job}" in block for block in blocks) for job in jobs)
    names = run_blocks(blocks)
    assert names["trained"].step == 4
    assert names["sampled"].images == 12
    assert all(value > 0 for value in names["record"].metrics.values() if isinstance(value, float))
    assert names["latents"].shape == (10, 1, 16, 16)
    assert "no-such-class" in capsys.readouterr().out


def test_the_blocks_on_diffusers(here, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(here / "modules"))
    write_model(RUN)
    succeed("export", "runs/digits-1", "models/mine-diffusers", "--format", "diffusers", "--quiet")
    first, second = python_blocks("docs/ecosystem.md")
    names = run_blocks([first.replace("[207, 360]", "[2, 3]")])  # the run has ten classes
    assert [image.size for image in names["images"]] == [(16, 16)] * 2
    run_blocks([second], names)
    assert type(names["pipe"]) is names["MPDiTPipeline"]
