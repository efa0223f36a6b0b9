"""docs/python-api.md: its blocks run, one after the other, in a folder with a run."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from ecosystem_helpers import model_folder

PAGE = Path(__file__).parents[1] / "docs" / "python-api.md"


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model_folder(Path("runs/digits-1/checkpoints/step-0000007"))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
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
