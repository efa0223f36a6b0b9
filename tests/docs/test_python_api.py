"""docs/python-api.md and docs/ecosystem.md: their blocks run, one after the other, in a folder with a run."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from ecosystem_helpers import model_folder

from mpdit_cli.app import main

DOCS = Path(__file__).parents[2] / "docs"


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model_folder(Path("runs/digits-1/checkpoints/step-0000007"))
    blocks = python_blocks("python-api.md")
    assert len(blocks) == 5
    names: dict = {}
    for block in blocks[:2]:
        exec(block, names)
    assert names["step"].t == 0
    assert names["images"].shape == (10, 3, 16, 16)
    assert names["images"].dtype == torch.uint8
    for block in blocks[2:]:
        exec(block, names)
    assert len(names["images"]) == 2
    said = capsys.readouterr().out
    assert "50 evaluations, 100 passes" in said
    assert "is not a folder" in said


def test_the_blocks_on_diffusers_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model_folder(Path("runs/digits-1/checkpoints/step-0000007"))
    assert main(["export", "runs/digits-1", "models/mine-diffusers", "--format", "diffusers", "--quiet"]) == 0
    blocks = python_blocks("ecosystem.md")
    assert len(blocks) == 2
    names: dict = {}
    exec(blocks[0].replace("[207, 360]", "[2, 3]"), names)  # the run has ten classes
    assert [image.size for image in names["images"]] == [(16, 16)] * 2
    exec(blocks[1], names)
    assert type(names["pipe"]) is names["MPDiTPipeline"]
