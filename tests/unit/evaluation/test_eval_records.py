"""What a record says of how its figures were made, and what `--compare` says of two of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_helpers import write_model

import mpdit_core
from mpdit_cli.app import main

FEATURES = """
from dataclasses import dataclass
from typing import ClassVar
from mpdit_core.api import Features, option
@dataclass
class Means:
    name: ClassVar[str] = "means"
    power: int = option(1, "of the pixels")
    def load(self, device):
        pass
    def __call__(self, images):
        return Features((images.float().mean(dim=3).flatten(1) / 255) ** self.power)
    def fingerprint(self):
        return "means"
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPDIT_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate("ab"):
        draw = np.random.RandomState(seed)
        np.savez(f"{name}.npz", arr_0=draw.randint(0, 256, (12, 16, 16, 3)).astype(np.uint8))
    (tmp_path / "means.py").write_text(FEATURES)
    return tmp_path


def run(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def measured(capsys, *more: str) -> dict:
    return run(capsys, "eval-fid", "a.npz", "--reference", "b.npz", "--metrics", "fid", *more)


def altered(record: dict, name: str, *path: str, to: object) -> str:
    """A copy of a record's file with one value changed."""
    data = json.loads(Path(record["path"]).read_text())
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    Path(name).write_text(json.dumps(data))
    return name


def test_a_record_names_package_version_and_options_of_its_plugins(here, capsys):
    write_model(here / "m")
    model = run(capsys, "eval-fid", "m", "--reference", "digits", "--features", "digits", "--num-samples", "6",
                "--num-steps", "2", "--metrics", "fid", "--sampler", "heun")  # fmt: skip
    assert model["extractor"]["plugin"] | {"options": None} == {
        "kind": "features", "name": "digits", "package": "mpdit-digits", "version": "0.1.0", "options": None,
    }  # fmt: skip
    sampler = model["sampling"]["plugin"]
    assert (sampler["name"], sampler["package"], sampler["version"]) == ("heun", "mpdit", mpdit_core.__version__)
    assert sampler["options"]["num_steps"] == model["sampling"]["num_steps"] == 2
    other = measured(capsys, "--features", "./means.py:Means", "--set", "features.power=2")["extractor"]["plugin"]
    assert other["options"] == {"power": 2}
    assert other["source"] == str(here / "means.py")
    assert len(other["sha256"]) == 64


def test_few_and_sorted_samples_are_warned_of(here, capsys):
    pictures = np.load("a.npz")["arr_0"]
    np.savez("sorted.npz", arr_0=pictures, arr_1=np.arange(12) // 3)
    np.savez("mixed.npz", arr_0=pictures, arr_1=np.arange(12) % 4)
    said = {}
    for name in ("sorted", "mixed"):
        record = run(capsys, "eval-fid", f"{name}.npz", "--reference", "b.npz", "--features", "digits",
                     "--metrics", "fid,is")  # fmt: skip
        said[name] = record["warnings"]
        halves = record["metrics"]["frechet_distance_bias"]
        assert f"{halves:.3g}" in said[name][-1]
        assert "12 samples are few" in said[name][-1]
    assert "sorted by class" in said["sorted"][0]
    assert not any("sorted" in text for text in said["mixed"])


def test_an_interval_on_request(here, capsys):
    record = measured(capsys, "--features", "digits", "--bootstrap", "8")["metrics"]
    lower, upper = record["frechet_distance_interval"]
    assert lower < record["frechet_distance"] < upper
    assert upper - lower == pytest.approx(2 * 1.96 * record["frechet_distance_std"])


def test_other_features_or_images_are_not_comparable(here, capsys):
    one = measured(capsys, "--features", "digits")
    two = measured(capsys, "--features", "digits-pixels")
    result = run(capsys, "eval-fid", "--compare", one["path"], two["path"])
    assert any("another scale" in reason for reason in result["reasons"])
    other = altered(one, "images.json", "reference", "sha256", to="0" * 64)
    assert "other images" in run(capsys, "eval-fid", "--compare", one["path"], other)["reasons"][0]
    package = altered(one, "package.json", "extractor", "plugin", "package", to="digits-of-others")
    result = run(capsys, "eval-fid", "--compare", one["path"], package)
    assert not result["comparable"]
    assert "mpdit-digits, digits-of-others" in result["reasons"][0]


def test_other_versions_and_options_of_plugins_are_told(here, capsys):
    one = measured(capsys, "--features", "digits")
    newer = altered(one, "newer.json", "extractor", "plugin", "version", to="0.2.0")
    result = run(capsys, "eval-fid", "--compare", one["path"], newer)
    assert result["comparable"]
    assert "another version of their package" in result["cautions"][0]
    assert "(0.1.0, 0.2.0)" in result["cautions"][0]
    write_model(here / "m")
    arguments = ["eval-fid", "m", "--reference", "digits", "--features", "digits", "--num-samples", "6",
                 "--metrics", "fid", "--num-steps"]  # fmt: skip
    two, three = (run(capsys, *arguments, steps) for steps in "23")
    result = run(capsys, "eval-fid", "--compare", two["path"], three["path"])
    assert result["comparable"]
    assert (result["cautions"], result["changed"]) == ([], ["num_steps (2, 3)"])
    old = altered(two, "old.json", "sampling", "plugin", "version", to="0.0.9")
    assert "sampler comes from another version" in run(capsys, "eval-fid", "--compare", two["path"], old)["cautions"][0]


def test_figures_of_unpublished_weights_never_stand_as_fid(here, inception_weights, capsys):
    record = measured(capsys, "--weights", str(inception_weights))
    assert next(iter(record["metrics"])) == "unpublished_fid"
    assert record["labels"]["unpublished_fid"] == "FID (unpublished weights)"
    assert record["is_fid"] is False
    assert record["extractor"]["published"] is False
    assert main(["eval-fid", "a.npz", "--reference", "b.npz", "--metrics", "fid", "--device", "cpu",
                 "--weights", str(inception_weights)]) == 0  # fmt: skip
    assert "FID (unpublished weights)" in capsys.readouterr().out
    published = altered(record, "published.json", "extractor", "published", to=True)
    result = run(capsys, "eval-fid", "--compare", published, record["path"])
    assert not result["comparable"]
    assert "the second was made with Inception weights that are not the published ones" in result["reasons"][0]
    alike = run(capsys, "eval-fid", "--compare", record["path"], record["path"])
    assert alike["comparable"]
    assert "with each other alone" in alike["cautions"][0]


def test_statistics_of_published_weights_are_not_compared_with_others(here, inception_weights, capsys):
    np.savez("adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    arguments = ["eval-fid", "a.npz", "--reference", "adm.npz", "--weights", str(inception_weights)]
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "statistics of inception" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [None, "import torchvision of another torch"])
def test_without_torch_fidelity_only_inception_fails(here, capsys, monkeypatch, broken):
    if broken is None:
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    else:
        (here / "site" / "torch_fidelity").mkdir(parents=True)
        (here / "site" / "torch_fidelity" / "__init__.py").write_text(
            "raise RuntimeError('operator nms does not exist')"
        )
        for name in [n for n in sys.modules if n.partition(".")[0] == "torch_fidelity"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(str(here / "site"))
    assert measured(capsys, "--features", "digits")["metrics"]["frechet_distance"] > 0
    assert main(["plugins", "show", "inception"]) == 0
    assert "torch's cache" in capsys.readouterr().out
    assert main(["eval-fid", "a.npz", "--reference", "b.npz", "--device", "cpu"]) == 2
    assert "pip install --upgrade torch-fidelity torchvision" in " ".join(capsys.readouterr().err.split())
