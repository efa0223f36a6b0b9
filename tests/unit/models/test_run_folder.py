"""The files of a run: format, metrics, previews, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpdit_core.data.manifest import AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import open_model, save_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import load_preset

LATENTS = LatentSpec(
    resolution=16,
    autoencoder=AutoencoderSpec(id="pixels-gray", factor=1, channels=1),
    normalisation=Normalisation(name="none", mean=(0.0,), std=(1.0,)),
    class_names=("red", "blue"),
    source="here",
    count=1,
)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "tiny-1")
    folder.write(load_preset("tiny"), LATENTS)
    return folder


def test_what_is_written_is_read(run):
    assert RunFolder.exists(run.path)
    assert run.config() == load_preset("tiny")
    assert run.latents() == LATENTS


def test_what_is_no_run_is_refused(tmp_path):
    assert not RunFolder.exists(tmp_path)
    with pytest.raises(UserError) as refused:
        RunFolder(tmp_path).config()
    assert refused.value.code == "not-a-run"


@pytest.mark.parametrize("about", [None, {"format": 1}, {"format": 99, "mpdit": "9.0"}])
def test_a_run_of_another_format_is_refused(run, about):
    if about is None:
        (run.path / "run.json").unlink()  # as the first format was
    else:
        (run.path / "run.json").write_text(json.dumps(about))
    for read in (run.config, run.latents):
        with pytest.raises(UserError) as refused:
            read()
        assert refused.value.code == "unknown-format"


def test_a_model_folder_of_another_format_is_refused(tmp_path):
    save_model(tmp_path / "m", {}, config=load_preset("tiny"), latents=None)
    about = tmp_path / "m" / "config.json"
    about.write_text(about.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(UserError) as refused:
        open_model(tmp_path / "m")
    assert refused.value.code == "unknown-format"


def test_metrics_pass_over_torn_and_foreign_lines(run):
    assert list(run.metrics()) == []
    run.append_metrics({"step": 1, "loss": 2.0})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('["not", "an", "object"]\n{"loss": 1.0}\nnot JSON\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_truncated_metrics_can_be_appended_to(run):
    for step in range(1, 5):
        run.append_metrics({"step": step})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5')  # torn by a kill
    run.truncate_metrics(3)
    run.append_metrics({"step": 4, "loss": 1.0})
    assert list(run.metrics()) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "loss": 1.0}]


def test_previews_are_those_of_the_average_in_order_of_step(run):
    for step in (400, 12_000_000, 800):
        for raw in (False, True):
            run.preview(step, raw=raw).parent.mkdir(exist_ok=True)
            run.preview(step, raw=raw).touch()
    run.animation.touch()
    assert run.previews() == [run.preview(step) for step in (400, 800, 12_000_000)]


def test_the_next_run_has_the_next_number(tmp_path):
    assert RunFolder.next(tmp_path, "xl-256").path == tmp_path / "xl-256-1"
    for name in ("xl-256-2", "xl-256-10", "xl-512-30", "xl-256-x"):
        (tmp_path / name).mkdir()
    assert RunFolder.next(tmp_path, "xl-256").path == tmp_path / "xl-256-11"


def test_checkpoints_are_in_order_of_step(run):
    for step in (1200, 400):
        save_model(run.checkpoint(step), {}, config=load_preset("tiny"), latents=LATENTS, step=step)
    Path(run.checkpoint(800)).mkdir()  # torn
    assert run.checkpoints() == [run.checkpoint(400), run.checkpoint(1200)]
    assert open_model(run.path).step == 1200
