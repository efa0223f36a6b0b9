"""`eval-fid` as a user types it: the real extractor with random weights, digits, and every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sample_helpers import write_model

from mpdit_cli.app import main
from mpdit_core.errors import UserError
from mpdit_core.metrics.features import Inception, build_extractor, extract
from mpdit_core.testing import check_features

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="session")
def inception(inception_weights) -> Inception:
    extractor = Inception(weights=str(inception_weights))
    extractor.load(torch.device("cpu"))
    return extractor


def pictures(count: int, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, side, side, 3)).astype(np.uint8)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    np.savez("a.npz", arr_0=pictures(12))
    np.savez("b.npz", arr_0=pictures(14, seed=1))
    return tmp_path


def run(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_spatial_features_are_seven_channels_flattened_as_tensorflow_does(inception):
    kept = []
    hook = inception._network.Mixed_6d.branch1x1.register_forward_hook(lambda *a: kept.append(a[2].clone()))
    features = inception(torch.from_numpy(pictures(2)).permute(0, 3, 1, 2))
    hook.remove()
    expected = kept[0].numpy()[:, :7].transpose(0, 2, 3, 1).reshape(2, 2023)
    assert np.array_equal(features.spatial.numpy(), expected)
    assert features.pool.shape == (2, 2048)
    assert features.logits.shape == (2, 1008)


def test_features_ignore_autocast_and_batch_size(inception):
    images = torch.from_numpy(pictures(3)).permute(0, 3, 1, 2)
    together = extract(inception, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = extract(inception, images, at_once=1)
    assert (together.pool - alone.pool).abs().max() < 1e-4


def test_inception_keeps_the_contract_of_features(inception_weights):
    check_features(build_extractor("inception", weights=inception_weights))


def test_fid_of_finished_samples_with_its_record(here, inception_weights, capsys):
    (here / "torch/hub/checkpoints").mkdir(parents=True)
    (here / "torch/hub/checkpoints" / WEIGHTS).symlink_to(inception_weights)
    result = run(capsys, "eval-fid", "a.npz", "--reference", "b.npz")
    assert {"unpublished_fid", "unpublished_sfid", "unpublished_is", "precision", "recall"} <= set(result["metrics"])
    assert result["count"] == 12
    assert result["extractor"]["weights_sha256"]
    assert json.loads(Path(result["path"]).read_text())["metrics"] == result["metrics"]
    state = torch.load(inception_weights)
    state["Conv2d_1a_3x3.conv.weight"] *= 1.5
    torch.save(state, "changed.pth")
    changed = run(capsys, "eval-fid", "a.npz", "--reference", "b.npz", "--weights", "changed.pth",
                  "--metrics", "precision,recall")  # fmt: skip
    assert changed["reference"]["extractor"] != result["reference"]["extractor"]  # measured anew, not from the cache
    assert changed["path"] != result["path"]


def test_every_form_of_the_same_pixels_gives_the_same(here, capsys):
    data = np.load("a.npz")["arr_0"]
    Path("png").mkdir()
    for i, picture in enumerate(data):
        Image.fromarray(picture).save(f"png/{i}.png")
    save_file({"images": torch.from_numpy(data)}, "a.safetensors")
    np.savez_compressed("c.npz", arr_0=data)
    found = [
        run(capsys, "eval-fid", what, "--reference", "b.npz", "--features", "digits")["metrics"]
        for what in ("a.npz", "png", "a.safetensors", "c.npz")
    ]
    assert found[0] == found[1] == found[2] == found[3]
    assert not any("fid" in key for key in found[0])
    record = json.loads(next(Path("evals").glob("*.json")).read_text())
    assert record["metrics_asked"][0] == "frechet_distance"


def test_a_model_is_sampled_exactly_and_not_twice(here, capsys):
    write_model(here / "m")
    arguments = ["eval-fid", "m", "--reference", "digits", "--features", "digits", "--num-samples", "9",
                 "--num-steps", "2", "--batch-size", "4", "--keep-samples"]  # fmt: skip
    first = run(capsys, *arguments)
    assert len(list(Path(first["path"]).with_suffix("").glob("*.png"))) == 9
    assert first["sampling"]["nfe"] == 2
    assert run(capsys, *arguments)["metrics"] == first["metrics"]
    again = run(capsys, *arguments, "--force")
    assert again["metrics"] == pytest.approx(first["metrics"])


def test_a_written_reference_gives_the_same_figures(here, capsys):
    run(capsys, "eval-fid", "--make-reference", "r.npz", "digits", "--resolution", "16", "--features", "digits")
    direct = run(capsys, "eval-fid", "a.npz", "--reference", "digits", "--features", "digits")
    stored = run(capsys, "eval-fid", "a.npz", "--reference", "r.npz", "--features", "digits")
    for key, value in direct["metrics"].items():
        assert stored["metrics"][key] == (None if value is None else pytest.approx(value, rel=1e-9)), key


def test_a_changed_folder_is_measured_again(here, capsys):
    Path("ref").mkdir()
    for i, picture in enumerate(pictures(8, seed=2)):
        Image.fromarray(picture).save(f"ref/{i}.png")
    before = run(capsys, "eval-fid", "a.npz", "--reference", "ref", "--features", "digits")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("ref/8.png")
    after = run(capsys, "eval-fid", "a.npz", "--reference", "ref", "--features", "digits")
    assert after["metrics"]["frechet_distance"] != before["metrics"]["frechet_distance"]
    assert after["reference"]["count"] == 9


def test_compare_says_in_words_why_not(here, capsys):
    one = run(capsys, "eval-fid", "a.npz", "--reference", "b.npz", "--features", "digits")["path"]
    two = run(capsys, "eval-fid", "a.npz", "--reference", "b.npz", "--features", "digits", "--num-samples", "10")[
        "path"
    ]
    result = run(capsys, "eval-fid", "--compare", one, two)
    assert not result["comparable"]
    assert "number of samples" in result["reasons"][0]
    assert run(capsys, "eval-fid", "--compare", one, one)["comparable"]


def test_a_sweep_ends_in_a_table_and_a_plot(here, capsys):
    write_model(here / "run" / "checkpoints" / "step-0000007")
    arguments = ["eval-fid", "run", "--reference", "digits", "--features", "digits", "--num-samples", "8",
                 "--batch-size", "8", "--num-steps", "1", "--sweep", "guidance_scale=1,2",
                 "--sweep", "guidance_interval=0:1,0.2:0.6", "--sweep", "checkpoint=7"]  # fmt: skip
    result = run(capsys, *arguments)
    rows = json.loads(Path(result["path"]).read_text())["rows"]
    assert [(row["guidance_scale"], row["guidance_interval"]) for row in rows] == [
        ("1", "0:1"), ("1", "0.2:0.6"), ("2", "0:1"), ("2", "0.2:0.6"),
    ]  # fmt: skip
    alone = json.loads(Path(rows[2]["record"]).read_text())
    assert alone["sampling"]["guidance_scale"] == 2
    assert rows[2]["frechet_distance"] == alone["metrics"]["frechet_distance"]
    assert rows[1]["frechet_distance"] == pytest.approx(rows[0]["frechet_distance"])  # unguided, whatever the interval
    assert result["lowest"]["frechet_distance"] == min(row["frechet_distance"] for row in rows)
    assert Image.open(result["plot"]).size[0] > 500
    before = {path: path.stat().st_mtime_ns for path in Path(rows[0]["record"]).parent.glob("digits*.json")}
    assert run(capsys, *arguments)["path"] == result["path"]
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.npz", "--sweep", "guidance_scale=1,2"], "finished samples"),
        (["run", "--sweep", "guidance_scale"], "--sweep guidance_scale"),
        (["run", "--sweep", "seed=1", "--sweep", "seed=2"], "twice"),
        (["run", "--sweep", "checkpoint=9"], "step-0000007"),
        (["run", "--sweep", "num_steps=2,none"], "num_steps"),
    ],
)
def test_mistakes_in_sweeps_are_one_message(here, capsys, arguments, said):
    write_model(here / "run" / "checkpoints" / "step-0000007")
    assert main(["eval-fid", *arguments, "--reference", "digits", "--features", "digits"]) == 2
    assert said in capsys.readouterr().err
    assert not list(here.rglob("evals"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere does not exist"),
        ([], "nothing to evaluate"),
        (["a.npz", "--reference", "gone.npz"], "gone.npz does not exist"),
        (["a.npz"], "no reference"),
        (["a.npz", "--reference", "wide.npz"], "32 px"),
        (["a.npz", "--reference", "b.npz", "--num-samples", "99"], "there are 12"),
        (["a.npz", "--reference", "b.npz", "--num-samples", "2"], "too few"),
        (["a.npz", "--reference", "b.npz", "--metrics", "beauty"], "beauty"),
        (["torn.npz", "--reference", "b.npz"], "torn.npz"),
        (["stored.npz", "--reference", "b.npz"], "arr_0"),
        (["a.npz", "--reference", "stored.npz"], "statistics of inception"),
        (["mixed", "--reference", "b.npz"], "2 sizes"),
    ],
)
def test_user_errors_are_one_message(here, capsys, arguments, said):
    np.savez("wide.npz", arr_0=pictures(8, 32))
    Path("torn.npz").write_bytes(Path("a.npz").read_bytes()[:3000])
    np.savez("stored.npz", mu=np.zeros(4), sigma=np.eye(4))
    Path("mixed").mkdir()
    for side in (8, 16):
        Image.new("RGB", (side, side)).save(f"mixed/{side}.png")
    assert main(["eval-fid", *arguments, "--features", "digits"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("evals").exists()


def test_missing_and_broken_weights_are_found_before_sampling(here, capsys, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    assert main(["eval-fid", "a.npz", "--reference", "b.npz"]) == 2
    message = capsys.readouterr().err
    assert str(here / "torch/hub/checkpoints" / WEIGHTS) in message
    Path("w.pth").write_bytes(b"torn")
    assert main(["eval-fid", "a.npz", "--reference", "b.npz", "--weights", "w.pth"]) == 2
    torch.save({"fc.weight": torch.zeros(3)}, "v.pth")
    assert main(["eval-fid", "a.npz", "--reference", "b.npz", "--weights", "v.pth"]) == 2


def test_broken_torchvision_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match="torchvision"):
        Inception().load(torch.device("cpu"))
