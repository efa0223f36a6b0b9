"""Code named by a file that was read is not run, unless the user types it or says --trust."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_helpers import encode, image_folder, refused

from mpdit_core import plugins
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.sources import open_source, require_trusted
from mpdit_core.evaluation import EvaluateOptions, make_reference
from mpdit_core.evaluation.reference import plan_reference
from mpdit_core.size import Size
from mpdit_core.training import TrainOptions, train


@pytest.fixture
def evil(tmp_path: Path) -> str:
    """Code that leaves a trace when it is imported."""
    (tmp_path / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'trace')!r}).write_text('here')\nclass Evil: pass\n"
    )
    return f"{tmp_path}/evil.py:Evil"


@pytest.fixture
def untouched(tmp_path: Path):
    yield
    assert not (tmp_path / "trace").exists()


def test_the_rule(evil: str, tmp_path: Path):
    record = {"kind": "samplers", "name": evil, "package": None, "options": {}}
    for act in (
        lambda: plugins.load("samplers", evil, trusted=False),
        lambda: plugins.build("features", "os:path", trusted=False),
        lambda: plugins.rebuild(record),
        lambda: open_source(evil, trusted=False),
        lambda: open_source(evil, split="train", trusted=False),
        lambda: require_trusted(evil, trust=False),
    ):
        with refused("untrusted-code"):
            act()
    assert not (tmp_path / "trace").exists()
    assert plugins.load("samplers", "euler", trusted=False)
    require_trusted("hf:org/name", trust=False)
    require_trusted(str(tmp_path), trust=False)
    with refused("broken-plugin"):
        plugins.rebuild(record, trusted=True)
    assert (tmp_path / "trace").exists()


@pytest.mark.usefixtures("untouched")
def test_a_manifest(evil: str, tmp_path: Path):
    folder = encode(image_folder(tmp_path / "images"), tmp_path / "latents").latents
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["plan"]["source"]["given"] = evil
    (folder / "manifest.json").write_text(json.dumps(manifest))
    LatentFolder(folder)
    with refused("untrusted-code"):
        make_reference(EvaluateOptions(what=str(folder), make_reference=tmp_path / "r.npz", device="cpu",
                                       features="digits-pixels"))  # fmt: skip
    with refused("untrusted-code"):  # as the record of a model or of samples gives it
        extractor = plugins.build("features", "digits-pixels")
        plan_reference(evil, resolution=Size.square(8), extractor=extractor, typed=False)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("where", ["features", "source"])
def test_a_training(evil: str, tmp_path: Path, where: str):
    folder = encode(image_folder(tmp_path / "images"), tmp_path / "latents", resolution=16).latents
    named = evil if where == "features" else "digits-pixels"
    if where == "source":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["plan"]["source"]["given"] = evil
        (folder / "manifest.json").write_text(json.dumps(manifest))
    config = tmp_path / "config.toml"
    config.write_text(f'preset = "tiny"\n[preview]\nevaluate_every = 4\nevaluate_features = "{named}"\n')
    options = TrainOptions(config=config, latents=folder, run=tmp_path / "run", dry_run=True, device="cpu")
    with refused("untrusted-code"):
        train(options)


def test_typed_or_trusted(evil: str, tmp_path: Path):
    """Then the code is run: it is no plugin, which is told."""
    folder = encode(image_folder(tmp_path / "images"), tmp_path / "latents", resolution=16).latents
    given = {"latents": folder, "run": tmp_path / "run", "dry_run": True, "device": "cpu"}
    typed = {"preview": {"evaluate_every": 4, "evaluate_features": evil}}
    with refused("broken-plugin"):
        train(TrainOptions(preset="tiny", settings=typed, **given))
    config = tmp_path / "config.toml"
    config.write_text(f'preset = "tiny"\n[preview]\nevaluate_every = 4\nevaluate_features = "{evil}"\n')
    with refused("broken-plugin"):
        train(TrainOptions(config=config, trust=True, **given))
