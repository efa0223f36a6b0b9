"""`eval-fid` of what other commands wrote: folders of `mpdit sample`, exports, models of the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_server import Hub
from PIL import Image
from sample_helpers import write_model
from test_hub import session

from mpdit_cli.app import main

SAMPLING = ("--num-steps", "2", "--guidance-scale", "1.5", "--seed", "3", "--batch-size", "4")
MEASURING = ("--reference", "digits", "--features", "digits", "--metrics", "fid,is,precision,recall")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPDIT_CACHE", str(tmp_path / "cache"))
    write_model(tmp_path / "m")
    return tmp_path


def run(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, *arguments: str) -> str:
    assert main([*arguments, "--device", "cpu"]) == 2
    return capsys.readouterr().err


def test_a_folder_of_mpdit_sample_gives_the_figures_of_its_model(here, capsys):
    direct = run(capsys, "eval-fid", "m", "--num-samples", "11", *SAMPLING, *MEASURING)
    formats = {"png": (), "by-class": ("--by-class",), "npz": ("--format", "npz"), "latents": ("--format", "latents")}
    for name, more in formats.items():
        run(capsys, "sample", "m", "-n", "11", "--out", name, *SAMPLING, *more)
        found = run(capsys, "eval-fid", name, *MEASURING)
        assert found["count"] == 11, name
        assert found["metrics"] == pytest.approx(direct["metrics"], rel=1e-6), (
            name
        )  # features know float32 rounding by batch
        for key in ("sampler", "num_steps", "sampler_options", "nfe", "guidance_scale", "guidance_interval",
                    "guidance_schedule", "seed", "classes", "guide", "plugin", "dtype"):  # fmt: skip
            assert found["sampling"][key] == direct["sampling"][key], (name, key)
        assert found["sampling"]["nfe"] == 2
        assert found["model"] == direct["model"], name
    assert (here / "png" / "grid.png").is_file()  # was there, and was not measured


def test_a_folder_of_samples_that_is_not_whole_is_refused(here, capsys):
    run(capsys, "sample", "m", "-n", "6", "--out", "s", *SAMPLING)
    picture = here / "s" / "images" / "000004.png"
    kept = picture.rename("kept.png")
    assert "images 0 to 4, each once" in refused(capsys, "eval-fid", "s", *MEASURING)
    shutil.copy(kept, picture)
    Image.new("RGB", (16, 16)).save(here / "s" / "images" / "of-my-own.png")
    assert "each once" in refused(capsys, "eval-fid", "s", *MEASURING)
    manifest = here / "s" / "samples.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))
    assert "not finished" in refused(capsys, "eval-fid", "s", *MEASURING)
    assert not Path("evals").exists()


def test_an_export_is_measured_as_its_run(here, capsys):
    write_model(here / "run" / "checkpoints" / "step-0000007")
    wanted = ("--num-samples", "8", "--num-steps", "2", "--batch-size", "4", "--metrics", "fid", "--features", "digits")
    run(capsys, "export", "run", "out")
    from_run = run(capsys, "eval-fid", "run", *wanted, "--reference", "digits")
    exported = run(capsys, "eval-fid", "out", *wanted, "--reference", "digits")
    assert exported["metrics"] == from_run["metrics"]
    assert exported["sampling"] == from_run["sampling"]
    assert exported["model"] | {"path": ""} == from_run["model"] | {"path": ""}
    assert Path(from_run["path"]).parent == Path("run/evals")
    assert Path(exported["path"]).parent == Path("evals")  # the export stays as it was
    assert not (here / "out" / "evals").exists()


def test_a_model_of_the_hub_is_measured_by_its_address(here, capsys):
    model = write_model(here / "other")
    wanted = ["--num-samples", "6", "--num-steps", "2", "--features", "digits", "--reference", "digits", "--metrics",
              "fid", "--device", "cpu", "--json"]  # fmt: skip
    with Hub() as hub:
        hub.repositories["me/tiny"] = {}
        hub.commit("me/tiny", {name: (model.path / name).read_bytes() for name in ("config.json", "model.safetensors")})
        code, shown, error = session(
            [["command", ["eval-fid", "hf:me/tiny", *wanted, "--out", str(here / "evals")]]],
            url=hub.url,
            home=here / "home",
        )[0]
    assert code == 0, error
    found = json.loads(shown.splitlines()[-1])
    assert found["what"] == "hf:me/tiny"
    assert found["metrics"] == run(capsys, "eval-fid", "other", *wanted[:-3])["metrics"]
    assert found["model"]["weights_sha256"] == model.weights_sha256
