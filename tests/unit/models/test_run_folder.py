"""The files of a run: format, metrics, previews, checkpoints."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from data_helpers import refused

from mpdit_core.data.manifest import AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.errors import UserError
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models import run_folder
from mpdit_core.models.model_folder import FORMAT, find_checkpoints, open_model, save_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import load_preset
from mpdit_core.size import Size

LATENTS = LatentSpec(
    resolution=Size.square(16),
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


def test_a_start_that_was_killed_leaves_the_folder_free(run):
    assert RunFolder.is_free(run.path.parent / "nowhere")
    assert not RunFolder.is_free(run.path)
    (run.path / "config.toml").rename(run.path / ".config.toml.1a2b3c4d.part")  # run.json is written first
    assert RunFolder.is_free(run.path)


def test_what_is_written_is_read(run):
    assert RunFolder.exists(run.path)
    assert run.config() == load_preset("tiny")
    assert run.latents() == LATENTS


def test_what_is_no_run_is_refused(tmp_path):
    assert not RunFolder.exists(tmp_path)
    with refused("not-a-run"):
        RunFolder(tmp_path).config()


@pytest.mark.parametrize("about", [{"format": 1}, {"format": 99, "mpdit": "9.0"}])
def test_a_run_of_another_format_is_refused(run, about):
    (run.path / "run.json").write_text(json.dumps(about))
    for read in (run.config, run.latents):
        with refused("unknown-format"):
            read()


def test_a_model_folder_of_another_format_is_refused(tmp_path):
    save_model(tmp_path / "m", {}, config=load_preset("tiny"), latents=None)
    about = tmp_path / "m" / "config.json"
    about.write_text(about.read_text().replace(f'"format": {FORMAT}', '"format": 1'))
    with refused("unknown-format"):
        open_model(tmp_path / "m")


def test_metrics_pass_over_torn_and_foreign_lines(run):
    assert list(run.metrics()) == list(run.newest_metrics()) == []
    run.append_metrics({"step": 1, "loss": 2.0})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('["not", "an", "object"]\n{"loss": 1.0}\nnot JSON\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert [line["step"] for line in run.newest_metrics()] == [2, 1]


def test_metrics_hold_finite_numbers_only(run):
    lines = [
        '{"step": 1, "loss": NaN, "lr": 1e999, "big": ' + "9" * 30 + ', "text": "x", "list": [1], "good": 2}',
        '{"step": true}', '{"step": -1}', '{"step": 1.5}', '{"step": ' + "9" * 5000 + "}", "[" * 100_000, "NaN", "3",
        '{"step": 2}',
    ]  # fmt: skip
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert list(run.metrics()) == [{"step": 1, "good": 2}, {"step": 2}]
    assert list(run.newest_metrics()) == [{"step": 2}, {"step": 1, "good": 2}]


def test_metrics_that_the_disk_takes_in_part_are_taken_back(run):
    resource = pytest.importorskip("resource")
    run.append_metrics({"step": 1})
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        with pytest.raises(UserError) as refused:
            run.append_metrics({"step": 2, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert refused.value.code == "cannot-write"
    run.append_metrics({"step": 3})
    assert list(run.metrics()) == [{"step": 1}, {"step": 3}]


DEEP = "a = " + "[" * 5000
HOSTILE = {
    "config.toml": ["", "x = 1", DEEP, "resolution = " + "9" * 5000, "resolution = 0x" + "f" * 40, "model = 3",
                    "[model]\nwidth = nan", "preset = []", "\x00",
                    "[train.optimizer]\nbetas = [[1], 2]", "[train]\noptimizer = [[1]]"],
    "run.json": ["", "[]", "3", '{"format": 2}', '{"format": 2, "latents": []}', "[" * 100_000,
                 '{"format": 2, "latents": {"count": ' + "9" * 30 + "}}", '{"format": ' + "9" * 5000 + "}"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in HOSTILE.items() for text in texts])
def test_damaged_files_of_a_run_are_refused(run, name, text):
    (run.path / name).write_text(text)
    with pytest.raises(UserError):
        (run.config() if name == "config.toml" else run.latents())


def change_config(folder: Path, **values) -> None:
    about = json.loads((folder / "config.json").read_text())
    about["config"]["model"] |= values
    (folder / "config.json").write_text(json.dumps(about))


@pytest.fixture
def model(tmp_path) -> Path:
    config = load_preset("tiny")
    save_model(tmp_path / "m", dict(MPDiT(config.model).named_parameters()), config=config, latents=LATENTS)
    return tmp_path / "m"


@pytest.mark.parametrize(
    "values",
    [{"width": 2**40}, {"num_classes": 2**60}, {"stages": [[4, 2**50]]}, {"mlp_ratio": 2**40}, {"num_classes": 11},
     {"input_size": 2**30}, {"width": 10**30}, {"width": "wide"}, {"stages": []}],
)  # fmt: skip
def test_a_configuration_that_is_not_that_of_the_weights_is_refused_before_it_is_built(model, values):
    change_config(model, **values)
    with pytest.raises(UserError) as refused:
        open_model(model).load()
    assert refused.value.code in ("damaged-file", "invalid-value", "too-large")


@pytest.mark.parametrize("key", ["config", "latents", "step", "images_seen", "extra", "sha256"])
@pytest.mark.parametrize("value", [[], "x", -1, 1.5, float("nan"), 10**30, {"a": {}}])
def test_wrong_values_beside_the_weights_are_refused(model, key, value):
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(about | {key: value}))
    if (key, value) == ("extra", {"a": {}}):
        return
    with pytest.raises(UserError):
        open_model(model)


def test_weights_that_changed_are_named_unless_the_check_is_off(model, monkeypatch):
    open_model(model).load()
    weights = model / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(UserError, match=r"model\.safetensors") as refused:
        open_model(model).load()
    assert refused.value.code == "damaged-file"
    monkeypatch.setenv("MPDIT_VERIFY", "off")
    open_model(model).load()


def test_truncated_metrics_can_be_appended_to(run):
    for step in range(1, 5):
        run.append_metrics({"step": step})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5')  # torn by a kill
    run.truncate_metrics(3)
    run.append_metrics({"step": 4, "loss": 1.0})
    assert list(run.metrics()) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "loss": 1.0}]
    run.truncate_metrics(0)
    assert list(run.metrics()) == []


def test_metrics_are_read_backwards_in_blocks(run, monkeypatch):
    """Lines end before, at and after the borders of the blocks; one that is longer than a block is passed over."""
    for step in range(200):
        run.append_metrics({"step": step, "loss": 10.0 ** (step % 7)})
    lines = list(run.metrics())
    monkeypatch.setattr(run_folder, "MAX_LINE_BYTES", 64)
    assert list(run.newest_metrics()) == lines[::-1]
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 200, "x": [0] * 100}) + "\n")
    run.append_metrics({"step": 201})
    assert list(run.newest_metrics()) == [{"step": 201}, *lines[::-1]]
    run.truncate_metrics(150)
    assert list(run.metrics()) == lines[:151]


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
    (run.path / "checkpoints" / ".step-0001600.1a2b3c4d.part").mkdir()
    assert run.checkpoint_folders() == [run.checkpoint(400), run.checkpoint(800), run.checkpoint(1200)]
    assert find_checkpoints(run.path)[0] == [run.checkpoint(400), run.checkpoint(1200)]
    assert open_model(run.path).step == 1200


def test_a_name_too_long_is_no_folder():
    with refused("no-such-file"):
        open_model("a" * 300)
