"""What a record says of how its figures were made, and what a comparison says of two of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_helpers import enter_folder, measured, options, pictures, warnings_of
from launch import run
from PIL import Image
from sample_helpers import code_of, write_model

import mpdit_core
from mpdit_core.evaluation import Comparison, EvaluationRecord, compare_records, evaluate, read_records
from mpdit_core.reporting import Event

FEATURES = """
from dataclasses import dataclass
from typing import ClassVar
from mpdit_core.api import Features, option
@dataclass
class Means:
    name: ClassVar[str] = "means"
    power: int = option(1, "power of the pixels")
    def load(self, device):
        pass
    def __call__(self, images):
        return Features((images.float().mean(dim=3).flatten(1) / 255) ** self.power)
    def fingerprint(self):
        return "means"
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "means.py").write_text(FEATURES)
    return enter_folder(tmp_path, monkeypatch)


def distance(**more: Any) -> EvaluationRecord:
    return measured(**{"metrics": ("fid",), **more})


def altered(record: EvaluationRecord, name: str, *path: str, to: object) -> Path:
    """A copy of a record's file with one value changed."""
    data = json.loads(record.path.read_text())
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    Path(name).write_text(json.dumps(data))
    return Path(name)


def compared(a: EvaluationRecord | Path, b: EvaluationRecord | Path) -> Comparison:
    return compare_records(*(record if isinstance(record, Path) else record.path for record in (a, b)))


def names(differences) -> list[str]:
    return [difference.name for difference in differences]


def test_a_record_is_read_as_it_was_written(here):
    record = distance(bootstrap=4)
    assert EvaluationRecord.read(record.path) == record
    assert not record.path.name.startswith(".")


@pytest.mark.parametrize(
    ("change", "code"), [({"format": 2}, "unknown-format"), ({"metrics": "none"}, "invalid-value")]
)
def test_a_record_of_another_version_or_damaged_is_refused(here, change, code):
    path = distance().path
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert code_of(EvaluationRecord.read, path) == code
    events: list[Event] = []
    assert read_records(path.parent, report=events.append) == []
    assert warnings_of(events) == ["damaged-record"]
    Path("x.json").write_text("{}")
    assert code_of(EvaluationRecord.read, Path("x.json")) == "damaged-file"


def test_records_of_a_run_come_in_order_of_step(here):
    wanted = {"num_samples": 4, "num_steps": 1, "metrics": ("fid",), "out": Path("evals")}
    for seed, step in enumerate((900, 7, 80)):
        folder = here / "run" / "checkpoints" / f"step-{step}"
        write_model(folder, seed=seed)
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"step": step}))
        measured(str(folder), "digits", **wanted)
    Path("evals/sweep-0.json").write_text("{}")
    assert [record.step for record in read_records(Path("evals"))] == [7, 80, 900]


def test_a_record_names_package_version_and_options_of_its_plugins(here):
    write_model(here / "m")
    model = distance(what="m", reference="digits", num_samples=6, num_steps=2, sampler="heun")
    features = model.extractor.plugin
    assert (features.name, features.package, features.version) == ("digits", "mpdit-digits", "0.1.0")
    assert model.sampling is not None
    sampler = model.sampling.sampler
    assert (sampler.name, sampler.package, sampler.version) == ("heun", "mpdit", mpdit_core.__version__)
    assert sampler.options["num_steps"] == model.sampling.options.num_steps == 2
    other = distance(features="./means.py:Means", feature_options={"power": 2})
    plugin = other.extractor.plugin
    assert plugin.options == {"power": 2}
    assert plugin.source == str(here / "means.py")
    assert len(plugin.sha256 or "") == 64
    assert other.path.name.startswith("means.py-Means-12-")


def test_few_sorted_and_lossy_samples_are_warned_of(here):
    images = np.load("a.npz")["arr_0"]
    np.savez("sorted.npz", arr_0=images, arr_1=np.arange(12) // 3)
    np.savez("mixed.npz", arr_0=images, arr_1=np.arange(12) % 4)
    Path("jpeg").mkdir()
    for i, picture in enumerate(images):
        Image.fromarray(picture).save(f"jpeg/{i}.jpg")
    said = {
        name: [warning.code for warning in measured(name, metrics=("fid", "is")).warnings]
        for name in ("sorted.npz", "mixed.npz", "jpeg")
    }
    assert said == {
        "sorted.npz": ["sorted-samples", "few-samples"],
        "mixed.npz": ["few-samples"],
        "jpeg": ["lossy-samples", "few-samples"],
    }


def test_a_bias_is_told_where_it_is_one(here, monkeypatch):
    """Halves of the samples may be nearer to the reference by chance: then there is no number to tell."""
    (warning,) = distance().warnings
    bias = distance().metrics["frechet_distance_bias"]
    assert f"{bias:.3g}" in warning.text
    first = iter([1.0, 0.9, 0.9])
    monkeypatch.setattr("mpdit_core.evaluation.metric_values.frechet_distance", lambda *_, **__: next(first))
    (warning,) = distance(force=True).warnings
    assert warning.code == "few-samples"
    assert "-0.1" not in warning.text


def test_an_error_bar_on_request(here):
    record = distance(bootstrap=8)
    assert record.distance == "frechet_distance"
    metrics: dict[str, Any] = dict(record.metrics)
    lower, upper = metrics["frechet_distance_interval"]
    assert lower < metrics["frechet_distance"] < upper
    assert upper - lower == pytest.approx(2 * 1.96 * metrics["frechet_distance_std"])


def test_other_features_images_or_numbers_are_not_comparable(here):
    one = distance()
    assert "features" in names(compared(one, distance(features="digits-pixels")).reasons)
    assert names(compared(one, distance(num_samples=10)).reasons) == ["number of samples"]
    other = altered(one, "images.json", "reference", "sha256", to="0" * 64)
    assert names(compared(one, other).reasons) == ["reference"]
    package = altered(one, "package.json", "extractor", "plugin", "package", to="digits-of-others")
    comparison = compared(one, package)
    assert not comparison.comparable
    assert comparison.reasons[0].values == ("mpdit-digits", "digits-of-others")
    assert compared(one, one).comparable


def test_other_versions_and_options_are_told(here):
    one = distance()
    comparison = compared(one, altered(one, "newer.json", "extractor", "plugin", "version", to="0.2.0"))
    assert comparison.comparable
    assert [(d.name, d.values) for d in comparison.cautions] == [("version of the features", ("0.1.0", "0.2.0"))]
    write_model(here / "m")
    two, three = (
        distance(what="m", reference="digits", num_samples=6, num_steps=steps, sampler_options={"grid": grid})
        for steps, grid in ((2, "uniform"), (3, "shifted"))
    )
    comparison = compared(two, three)
    assert comparison.comparable
    assert comparison.cautions == ()
    assert {d.name: d.values for d in comparison.changed}["num_steps"] == (2, 3)
    assert "sampler_options" in names(comparison.changed)
    old = altered(two, "old.json", "sampling", "sampler", "version", to="0.0.9")
    assert names(compared(two, old).cautions) == ["version of the sampler"]


def test_figures_of_unpublished_weights_never_stand_as_fid(here, inception_weights):
    np.savez("b.npz", arr_0=pictures(5, seed=1))
    record = distance(features="inception", weights=inception_weights, num_samples=5)
    assert record.distance == "unpublished_fid"
    assert record.labels["unpublished_fid"] == "FID (unpublished weights)"
    assert not any(key.startswith("fid") for key in record.metrics)
    assert record.is_fid is False
    assert record.extractor.published is False
    words = ["-n", 5, "--reference", "b.npz", "--metrics", "fid", "--device", "cpu", "--weights", inception_weights]
    assert "FID (unpublished weights)" in run("eval-fid", "a.npz", *words).out
    published = altered(record, "published.json", "extractor", "published", to=True)
    assert names(compared(published, record).reasons) == ["published weights"]
    alike = compared(record, record)
    assert alike.comparable
    assert names(alike.cautions) == ["published weights"]
    np.savez("adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))  # as of the published weights
    assert (
        code_of(evaluate, options(reference="adm.npz", features="inception", weights=inception_weights))
        == "other-features"
    )


@pytest.mark.parametrize("broken", [None, "import torchvision of another torch"])
def test_without_torch_fidelity_only_inception_fails(here, monkeypatch, broken):
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
    assert distance().value("fid")
    assert run("plugins", "show", "inception").code == 0
    assert code_of(evaluate, options(features="inception")) == "no-torch-fidelity"
