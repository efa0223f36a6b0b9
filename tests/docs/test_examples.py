"""Each program in examples/ runs, with smaller numbers, and makes what it says."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT
from PIL import Image
from sample_helpers import write_model

SMALL = {
    "train": {"batch_size": 2},
    "model": {"width": 32, "num_heads": 2, "stages": [[8, 1], [4, 1]]},
    "preview": {"every": 0},
}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[..., None]]:
    """The `main` of an example, to be run in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return lambda name: importlib.import_module(Path(name).stem).main


def test_every_example_is_tested():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "examples").glob("*.py") if f'example("{path.name}")' not in tested] == []


def test_images_from_a_model(example, capsys):
    write_model(Path("run/checkpoints/step-0000007"))
    example("sample_a_model.py")("run", num_steps=2)
    assert capsys.readouterr().out.startswith("4 evaluations, 8 passes")
    assert all(Image.open(name).size > (16, 16) for name in ("grid.png", "trajectory.png"))


def test_a_sampler_and_its_order(example, capsys):
    example("a_sampler.py")()
    printed = capsys.readouterr().out
    euler, ralston = ([float(x) for x in re.findall(rf"{name} (\d\.\d+)", printed)] for name in ("euler", "ralston"))
    assert ralston[-1] < euler[-1] / 5
    assert 3 < ralston[-2] / ralston[-1] < 5  # of second order


def test_one_s_own_pictures(example, capsys):
    Path("photos").mkdir()
    for n in range(12):
        Image.fromarray(np.full((32, 32, 3), 20 * n, dtype=np.uint8)).save(f"photos/{n}.png")
    example("own_pictures.py")("photos", steps=2, num_samples=4, settings=SMALL)
    assert "frechet_distance" in capsys.readouterr().out
