"""`mpdit export --format space`: a whole folder, an app.py that opens the page, nothing of this machine."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data_helpers import refused
from ecosystem_helpers import latent_spec, model_folder, random_model, run_with_a_checkpoint
from huggingface_hub import metadata_load
from mpdit_playground import PlaygroundOptions
from packaging.requirements import Requirement
from safetensors.torch import load_file

from mpdit_cli.app import main
from mpdit_core import __version__
from mpdit_core.interop import ExportOptions, export_model
from mpdit_core.interop.export import job as export_job
from mpdit_core.models.model_folder import open_model, save_model

MODEL_FILES = ["README.md", "config.json", "model.safetensors", "samples.png"]


def space(model: object, out: Path, **more: Any) -> Path:
    export_model(ExportOptions(model=str(model), out=out, format="space", **more))
    return out


def requirements(folder: Path) -> dict[str, Requirement]:
    lines = (folder / "requirements.txt").read_text().splitlines()
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


@pytest.fixture
def run(tmp_path) -> Path:
    return run_with_a_checkpoint(tmp_path)


def test_the_folder_is_complete(run, tmp_path):
    folder = space(run, tmp_path / "digits")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "app.py", "model", "requirements.txt"]
    assert sorted(p.name for p in (folder / "model").iterdir()) == MODEL_FILES
    original, exported = (load_file(open_model(where).path / "model.safetensors") for where in (run, folder / "model"))
    assert original.keys() == exported.keys()
    assert all(original[name].equal(exported[name]) for name in original)
    card = (folder / "model" / "README.md").read_text()
    assert "# digits" in card
    assert "mpdit sample model" in card


def test_front_matter(run, tmp_path):
    matter = metadata_load(space(run, tmp_path / 'a "b": c', licence="mit") / "README.md")
    assert matter is not None
    assert (matter["title"], matter["license"], matter["sdk"]) == ('a "b": c', "mit", "gradio")
    assert (matter["app_file"], matter["python_version"]) == ("app.py", "3.11")


def test_requirements_have_lower_bounds_that_this_version_meets(run, tmp_path):
    found = requirements(space(run, tmp_path / "out"))
    assert list(found) == ["mpdit", "mpdit-playground"]
    assert str(found["mpdit"].specifier) == f">={__version__}"
    assert str(found["mpdit-playground"].specifier).startswith(">=")


def test_the_package_of_the_autoencoder_is_required(tmp_path):
    model, config = random_model()
    spec = latent_spec(config)
    autoencoder = spec.autoencoder.model_copy(update={"id": "mine", "package": "mpdit-mine"})
    latents = spec.model_copy(update={"autoencoder": autoencoder})
    save_model(tmp_path / "m", model.state_dict(), config=config, latents=latents)
    assert "mpdit-mine" in requirements(space(tmp_path / "m", tmp_path / "out"))


def test_app_opens_the_page_where_gradio_is_told_to(run, tmp_path, monkeypatch):
    opened: list[PlaygroundOptions] = []
    stand_in = SimpleNamespace(
        PlaygroundOptions=PlaygroundOptions, playground=lambda options, *, report: opened.append(options)
    )
    monkeypatch.setitem(sys.modules, "mpdit_playground", stand_in)
    monkeypatch.chdir(tmp_path)  # app.py changes it
    app = space(run, tmp_path / "out") / "app.py"
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    runpy.run_path(str(app))
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    runpy.run_path(str(app))
    assert [(options.host, options.browser) for options in opened] == [("127.0.0.1", False), ("0.0.0.0", False)]
    assert open_model(opened[0].models[0]).step == 7  # from the folder of app.py


def test_nothing_of_this_machine_is_inside(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder = space(run, tmp_path / "out")
    for path in (p for p in folder.rglob("*") if p.suffix in (".md", ".py", ".txt", ".json")):
        text = path.read_text()
        assert str(tmp_path) not in text, path
        assert "hf_secret" not in text, path


def test_half(run, tmp_path):
    folder = space(run, tmp_path / "out", half=True)
    assert {str(t.dtype) for t in load_file(folder / "model" / "model.safetensors").values()} == {"torch.float16"}


def test_push_makes_a_space(run, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(export_job.hub, "upload_folder", lambda *a, **more: pushed.append((a, more)) or "url")
    space(run, tmp_path / "out", push="me/digits")
    assert pushed == [((tmp_path / "out", "me/digits"), {"kind": "space", "private": False})]
    assert "hf:me/digits" not in (tmp_path / "out" / "model" / "README.md").read_text()


def test_a_model_without_a_description_of_its_latents_is_refused(tmp_path):
    model, config = random_model()
    save_model(tmp_path / "m", model.state_dict(), config=config, latents=None)
    with refused("no-autoencoder"):
        space(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_names_the_next_one(tmp_path, capsys):
    model = model_folder(tmp_path / "m").path
    assert main(["export", str(model), str(tmp_path / "out"), "--format", "space"]) == 0
    assert "app.py" in capsys.readouterr().out
