"""Evaluations from Python and as a user types them: the real extractor with random weights, digits, every mistake."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_helpers import enter_folder, measured, options, pictures, warnings_of
from PIL import Image
from precision_helpers import make_auto_mean
from safetensors.torch import load_file, save_file
from sample_helpers import code_of, write_model

from mpdit_cli.app import main
from mpdit_core import plugins
from mpdit_core.errors import UserError
from mpdit_core.evaluation import EvaluationRecord, evaluate, evaluate_sweep, make_reference
from mpdit_core.metrics.features import Inception, extract
from mpdit_core.reporting import Note, Progress, Saved
from mpdit_core.runtime import locks
from mpdit_core.testing import check_features

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="session")
def inception(inception_weights) -> Inception:
    extractor = Inception(weights=str(inception_weights))
    extractor.load(torch.device("cpu"))
    return extractor


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    return enter_folder(tmp_path, monkeypatch)


def test_spatial_features_are_seven_channels_flattened_as_tensorflow_does(inception):
    kept = []
    hook = inception._network.Mixed_6d.branch1x1.register_forward_hook(lambda *a: kept.append(a[2].clone()))
    features = inception(torch.from_numpy(pictures(2)).permute(0, 3, 1, 2))
    hook.remove()
    expected = kept[0].numpy()[:, :7].transpose(0, 2, 3, 1).reshape(2, 2023)
    assert np.array_equal(features.spatial.numpy(), expected)
    assert features.pool.shape == (2, 2048)
    assert features.logits.shape == (2, 1008)


def test_features_ignore_autocast_and_batch_size(inception, monkeypatch):
    images = torch.from_numpy(pictures(3)).permute(0, 3, 1, 2)
    together = extract(inception, images)
    monkeypatch.setattr("mpdit_core.metrics.features.IMAGES_AT_ONCE", 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = extract(inception, images)
    assert (together.pool - alone.pool).abs().max() < 1e-4


def test_inception_keeps_the_contract_of_features(inception_weights):
    check_features(Inception(weights=str(inception_weights)))


def test_fid_of_finished_samples_with_its_record(here, inception_weights, capsys):
    for seed, name in enumerate(("a.npz", "b.npz")):
        np.savez(name, arr_0=pictures(6, seed=seed))
    (here / "torch/hub/checkpoints").mkdir(parents=True)
    (here / "torch/hub/checkpoints" / WEIGHTS).symlink_to(inception_weights)
    assert main(["eval-fid", "a.npz", "--reference", "b.npz", "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"unpublished_fid", "unpublished_sfid", "unpublished_is", "precision", "recall"} <= set(result["metrics"])
    assert json.loads(Path(result["path"]).read_text())["metrics"] == result["metrics"]
    first = EvaluationRecord.read(Path(result["path"]))
    assert first.count == 6
    assert first.extractor.weights_sha256
    assert [warning.code for warning in first.warnings] == ["unpublished-weights", "few-samples"]
    state = torch.load(inception_weights)
    state["Conv2d_1a_3x3.conv.weight"] *= 1.5
    torch.save(state, "changed.pth")
    changed = measured(features="inception", weights="changed.pth", metrics=("precision", "recall"))
    assert changed.reference.extractor != first.reference.extractor  # measured anew, not from the cache
    assert changed.path != first.path


def test_every_form_of_the_same_pixels_gives_the_same(here):
    data = np.load("a.npz")["arr_0"]
    Path("png").mkdir()
    for i, picture in enumerate(data):
        Image.fromarray(picture).save(f"png/{i}.png")
    save_file({"images": torch.from_numpy(data)}, "a.safetensors")
    np.savez_compressed("c.npz", arr_0=data)
    records = [measured(what) for what in ("a.npz", "png", "a.safetensors", "c.npz")]
    assert all(record.metrics == records[0].metrics for record in records)
    assert not any("fid" in key for key in records[0].metrics)
    assert records[0].keys["fid"] == "frechet_distance"


def test_a_model_is_sampled_exactly_and_not_twice(here):
    write_model(here / "m")
    sampled = partial(measured, "m", "digits", num_samples=9, num_steps=2, batch_size=4, keep_samples=True)
    first = sampled()
    assert len(list(first.path.with_suffix("").glob("*.png"))) == 9
    assert first.sampling is not None
    assert (first.sampling.nfe, first.sampling.passes) == (2, 2)
    assert sampled() == first
    again = sampled(force=True)
    assert again.metrics == first.metrics
    assert again.path == first.path


def test_guide_schedule_precision_and_compile_are_those_of_sampling(here):
    write_model(here / "m")
    guide = write_model(here / "weak", seed=1)
    more = {"num_samples": 6, "num_steps": 2, "guidance_scale": 2.0, "metrics": ("fid",)}
    plain = measured("m", "digits", **more)
    guided = measured("m", "digits", **more, guide="weak", guidance="apg", guidance_schedule="cosine",
                      precision="bfloat16", compile="off")  # fmt: skip
    assert guided.metrics != plain.metrics
    assert guided.sampling is not None
    assert guided.sampling.guide == guide.weights_sha256
    assert guided.sampling.dtype == "bfloat16"
    assert guided.sampling.options.guidance_schedule == "cosine"
    assert guided.sampling.options.guidance_options["momentum"] == -0.5
    assert (guided.sampling.nfe, guided.sampling.passes) == (2, 3)  # at t = 1 the cosine schedule has scale 1
    arguments = ["eval-fid", "m", "--reference", "digits", "--features", "digits", "-n", "6", "--num-steps", "2",
                 "--guidance-scale", "2", "--metrics", "fid", "--guide", "weak", "--guidance-schedule", "cosine",
                 "--guidance", "apg", "--precision", "bfloat16", "--compile", "off", "--device", "cpu",
                 "--quiet"]  # fmt: skip
    before = guided.path.stat().st_mtime_ns
    assert main(arguments) == 0
    assert guided.path.stat().st_mtime_ns == before  # the same evaluation, so it was read


def test_the_type_that_auto_came_to_is_recorded(here, monkeypatch):
    write_model(here / "m")
    make_auto_mean(monkeypatch, "bfloat16")
    record = measured("m", "digits", num_samples=6, num_steps=1, metrics=("fid",))
    assert record.sampling is not None
    assert record.sampling.dtype == "bfloat16"


def test_progress_and_files_are_reported(here):
    events = []
    record = evaluate(options(), report=events.append)
    assert {event.task for event in events if isinstance(event, Progress)} == {"reference", "evaluate"}
    assert [event.path for event in events if isinstance(event, Saved)] == [record.path]
    assert warnings_of(events) == ["few-samples"]
    events.clear()
    assert evaluate(options(), report=events.append) == record
    assert warnings_of(events) == ["few-samples"]
    assert any(isinstance(event, Note) for event in events)
    assert not any(isinstance(event, Progress) for event in events)


def test_a_written_reference_gives_the_same_figures(here):
    made = make_reference(options("digits", None, make_reference="r.npz", resolution=16))
    assert made.path == Path("r.npz")
    direct, stored = measured(reference="digits"), measured(reference="r.npz")
    for key, value in direct.metrics.items():
        assert stored.metrics[key] == (None if value is None else pytest.approx(value, rel=1e-9)), key
    assert stored.reference.kind == "stored statistics"


def test_a_changed_folder_is_measured_again(here):
    Path("ref").mkdir()
    for i, picture in enumerate(pictures(8, seed=2)):
        Image.fromarray(picture).save(f"ref/{i}.png")
    before = measured(reference="ref")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("ref/8.png")
    after = measured(reference="ref")
    assert after.value("fid") != before.value("fid")
    assert after.reference.count == 9


def test_a_reference_stored_by_another_version_is_measured_again(here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("mpdit_core.evaluation.reference.FORMAT", "1")
        expected = measured().metrics
    (stored,) = (here / "cache").rglob("*.safetensors")
    poisoned = {name: tensor + 1 for name, tensor in load_file(stored).items()}
    save_file(poisoned, stored)
    assert measured(force=True).metrics == expected


def test_two_evaluations_into_one_record_are_refused(here, monkeypatch):
    monkeypatch.setattr("mpdit_core.evaluation.progress.locked", partial(locks.locked, seconds=0.05))
    path = measured().path
    with locks.locked(path.with_suffix(".partial")):
        assert code_of(evaluate, options(force=True)) == "folder-in-use"
    assert measured(force=True).path == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_sweep_ends_in_a_table_and_a_plot(here):
    write_model(here / "run" / "checkpoints" / "step-0000007")
    wanted = options("run", "digits", num_samples=8, batch_size=8, num_steps=1,
                     sweep=("guidance_scale=1,2", "guidance_interval=0,1;0.2,0.6", "checkpoint=7"))  # fmt: skip
    events = []
    result = evaluate_sweep(wanted, report=events.append)
    assert [(row.values["guidance_scale"], row.values["guidance_interval"]) for row in result.rows] == [
        ("1", "0,1"), ("1", "0.2,0.6"), ("2", "0,1"), ("2", "0.2,0.6"),
    ]  # fmt: skip
    assert result.plotted == "frechet_distance"
    alone = EvaluationRecord.read(result.rows[2].record)
    assert alone.sampling is not None
    assert alone.sampling.options.guidance_scale == 2
    distances: list[Any] = [row.metrics["frechet_distance"] for row in result.rows]
    assert distances[2] == alone.value("fid")
    assert distances[1] == pytest.approx(distances[0])  # unguided, whatever the interval
    assert result.lowest.metrics["frechet_distance"] == min(distances)
    assert json.loads(result.path.read_text())["rows"][2]["metrics"] == alone.metrics
    assert result.plot
    assert Image.open(result.plot).size[0] > 500
    tasks = {event.task for event in events if isinstance(event, Progress)}
    assert {"sweep", "evaluate"} <= tasks
    assert warnings_of(events) == ["few-samples"]  # once
    before = {path: path.stat().st_mtime_ns for path in alone.path.parent.glob("digits*.json")}
    assert evaluate_sweep(wanted).path == result.path
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_tables_for_people(here, capsys):
    write_model(here / "m")
    assert main(["eval-fid", "a.npz", "--reference", "b.npz", "--features", "digits", "--bootstrap", "4"]) == 0
    shown = capsys.readouterr().out
    assert "Fréchet distance (digits)" in shown
    assert "95 %" in shown
    sweep = ["eval-fid", "m", "--reference", "digits", "--features", "digits", "-n", "4", "--metrics", "fid"]
    assert main([*sweep, "--sweep", "num_steps=1,2"]) == 0
    assert "lowest Fréchet distance (digits)" in capsys.readouterr().out
    record = next(Path("evals").glob("digits-12-*.json"))
    assert main(["eval-fid", "--compare", str(record), str(record)]) == 0
    assert "comparable" in capsys.readouterr().out
    assert main(["eval-fid", "digits", "--make-reference", "r.npz", "--resolution", "16", "--features", "digits"]) == 0
    assert "1797" in capsys.readouterr().out


def test_a_sweep_of_a_metric_that_the_features_lack_has_a_table(here):
    write_model(here / "m")
    result = evaluate_sweep(options("m", "digits", num_samples=4, metrics=("sfid",), sweep=("num_steps=1,2",)))
    assert [row.metrics[result.plotted] for row in result.rows] == [None, None]


@pytest.mark.parametrize(
    ("what", "sweep", "code"),
    [
        ("a.npz", ("guidance_scale=1,2",), "not-a-model"),
        ("a.npz", ("checkpoint=9",), "not-a-model"),
        ("run", ("guidance_scale",), "not-a-sweep"),
        ("run", ("seed=1", "seed=2"), "swept-twice"),
        ("run", ("checkpoint=9",), "no-such-checkpoint"),
        ("run", ("num_steps=2,none",), "invalid-value"),
        ("run", ("beauty=2",), "unknown-key"),
    ],
)
def test_mistakes_in_sweeps_are_refused(here, what, sweep, code):
    write_model(here / "run" / "checkpoints" / "step-0000007")
    assert code_of(evaluate_sweep, options(what, "digits", sweep=sweep)) == code
    assert not list(here.rglob("evals"))


@pytest.mark.parametrize(
    ("what", "reference", "more", "code"),
    [
        ("nowhere", "b.npz", {}, "no-such-file"),
        (None, "b.npz", {}, "nothing-given"),
        ("a.npz", "gone.npz", {}, "no-such-file"),
        ("a.npz", None, {}, "no-reference"),
        ("a.npz", "wide.npz", {}, "other-resolution"),
        ("a.npz", "narrow.npz", {}, "other-resolution"),
        ("a.npz", "narrow", {}, "other-resolution"),
        ("a.npz", "b.npz", {"num_samples": 99}, "too-few-images"),
        ("a.npz", "b.npz", {"num_samples": 2}, "too-few-images"),
        ("torn.npz", "b.npz", {}, "damaged-file"),
        ("stored.npz", "b.npz", {}, "no-images"),
        ("a.npz", "stored.npz", {}, "other-features"),
        ("a.npz", "model", {}, "no-images"),
        ("mixed", "b.npz", {}, "several-sizes"),
        ("a.npz", "b.npz", {"weights": "w.pth"}, "invalid-value"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(here, what, reference, more, code):
    np.savez("wide.npz", arr_0=pictures(8, 32))
    np.savez("narrow.npz", arr_0=pictures(8, 4))
    Path("torn.npz").write_bytes(Path("a.npz").read_bytes()[:3000])
    np.savez("stored.npz", mu=np.zeros(4), sigma=np.eye(4))
    write_model(here / "model")
    for folder, sides in (("mixed", (8, 16)), ("narrow", (4,))):
        Path(folder).mkdir()
        for side in sides:
            Image.new("RGB", (side, side)).save(f"{folder}/{side}.png")
    assert code_of(evaluate, options(what, reference, **more)) == code
    assert not Path("evals").exists()
    assert not Path("cache").exists()


@pytest.mark.parametrize("metrics", ["beauty", ","])
def test_unknown_metrics_or_none_are_refused(here, capsys, metrics):
    assert main(["eval-fid", "a.npz", "--reference", "b.npz", "--metrics", metrics, "--json"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["code"] == "invalid-value"


def test_statistics_of_another_size_are_refused_before_sampling(here):
    """Their features claim to be the same: only their number shows that they are not."""
    name = f"digits {plugins.build('features', 'digits').fingerprint()}"
    np.savez("small.npz", mu=np.zeros(4), sigma=np.eye(4), features=np.str_(name))
    write_model(here / "m")
    assert code_of(evaluate, options("m", "small.npz", num_samples=8)) == "other-features"
    assert not Path("evals").exists()


def test_missing_and_broken_weights_are_found_before_sampling(here, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError) as caught:
        evaluate(options(features="inception"))
    assert caught.value.code == "no-weights"
    assert str(here / "torch/hub/checkpoints" / WEIGHTS) in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setenv("TORCH_HOME", str(here / "a.npz"))  # a file: no cache can be made there
        assert code_of(evaluate, options(features="inception")) == "no-weights"
    Path("w.pth").write_bytes(b"torn")
    assert code_of(evaluate, options(features="inception", weights="w.pth")) == "damaged-file"
    torch.save({"fc.weight": torch.zeros(3)}, "v.pth")
    assert code_of(evaluate, options(features="inception", weights="v.pth")) == "wrong-weights"


def test_a_broken_torch_fidelity_has_a_code_of_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert code_of(Inception().load, torch.device("cpu")) == "no-torch-fidelity"
