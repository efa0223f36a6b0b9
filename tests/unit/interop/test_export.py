"""`mpdit export`: bit-equal folders, cards, graphs, latents as a data set; and mistakes."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import refused
from ecosystem_helpers import dense_weights, model_folder, random_model, run_with_a_checkpoint, with_variance
from golden_files import FILES, assert_close
from golden_files import load_model as load_golden
from safetensors.torch import load_file

from mpdit_cli.app import main
from mpdit_core.config import RunConfig, Stage
from mpdit_core.data.hash_check import HashCheck
from mpdit_core.data.latents import LatentFolder
from mpdit_core.errors import UserError
from mpdit_core.interop import ExportOptions, ExportResult, export_model, import_official
from mpdit_core.interop.export import card, graph, markdown
from mpdit_core.interop.export import job as export_job
from mpdit_core.interop.pipeline import MPDiTTransformer
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.presets import load_preset
from mpdit_core.reporting import Event, Progress, Warning
from mpdit_core.settings import Result, parse_assignments, validate


@pytest.fixture
def run(tmp_path) -> Path:
    return run_with_a_checkpoint(tmp_path)


def export(model: object, out: Path, **more: Any) -> ExportResult:
    return export_model(ExportOptions(model=str(model), out=out, **more))


def same_bits(a: Path, b: Path) -> bool:
    x, y = load_file(a), load_file(b)
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) and x[n].dtype == y[n].dtype for n in x)


def test_export_is_bit_equal_and_opens_as_a_model(run, tmp_path):
    result = export(run, tmp_path / "out")
    original, exported = open_model(run), open_model(tmp_path / "out")
    assert same_bits(original.path / "model.safetensors", exported.path / "model.safetensors")
    assert result.weights_sha256 == original.weights_sha256
    assert (result.step, result.format) == (7, "mpdit")
    assert result.bytes == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert (exported.config, exported.step, exported.images_seen) == (original.config, 7, 56)
    assert (tmp_path / "out" / "samples.png").read_bytes() == b"picture of 7"
    export(tmp_path / "out", tmp_path / "twice")
    assert same_bits(original.path / "model.safetensors", tmp_path / "twice" / "model.safetensors")
    assert (tmp_path / "twice" / "samples.png").exists()


def test_half_is_exactly_the_rounded_weights(run, tmp_path):
    export(run, tmp_path / "half", half=True)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    for name, tensor in load_file(open_model(run).path / "model.safetensors").items():
        assert torch.equal(stored[name], tensor.half())
    assert next(open_model(tmp_path / "half").load().parameters()).dtype == torch.float32


def test_the_command_prints_the_result(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out"), "--licence", "mit", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["event"], result["path"]) == ("result", str(tmp_path / "out"))
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()


# The card


class Record(Result):
    """What a card reads of an evaluation record."""

    path: Path
    metrics: dict[str, Any]
    count: int = 50_000
    reference: dict[str, Any]


@pytest.fixture
def evaluated(monkeypatch):
    """Every run has this one evaluation."""
    metrics = {"fid": 12.3456789, "fid_interval": [12.0, 13.0]}
    reference = {"path": "/home/me/ref.npz", "count": 10}
    records = [Record(path=Path("evals/fid.json"), metrics=metrics, reference=reference)]
    monkeypatch.setattr(card, "read_records", lambda folder: records)


def test_card_says_what_a_reader_wants(run, tmp_path, evaluated):
    export(run, tmp_path / "out", licence="cc-by-4.0")
    text = (tmp_path / "out" / "README.md").read_text()
    parameters = sum(p.numel() for p in open_model(run).load().parameters())
    for part in (
        "license: cc-by-4.0",
        "preset `tiny`",
        f"{parameters:,}",
        "| fid | 12.3457 |",
        "<details><summary>protocol of fid</summary>",
        "reference.count | 10",
        "mpdit train --preset tiny",
        "encode-latents digits --resolution 16 --autoencoder pixels-gray",
        "![samples](samples.png)",
        "images seen | 56",
    ):
        assert part in text, part
    assert "/home/me" not in text
    assert str(tmp_path.parent) not in text


@pytest.mark.parametrize("form", ["mpdit", "diffusers", "onnx", "torch-export"])
def test_card_of_every_form_holds_every_part(run, form):
    text = card.model_card(open_model(run), name="m", where="hf:me/m", export_format=form, licence=None, grid=False)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# m", *(f"## {part}" for part in ("Use", "Model", "Data", "Compute", "Metrics")),
                        "## To repeat it"]  # fmt: skip
    assert text.count("```") % 2 == 0
    assert "{{" not in text
    assert "{%" not in text


EVIL = 'x`<script>alert(1)</script>\n```\nrm -rf ~; $(reboot) "&" | [a](b) '


def test_nothing_a_stranger_wrote_becomes_html_or_a_command(tmp_path):
    """Every text of a stranger's model: shown in the card, but neither as HTML nor as a line of a command."""
    folder = model_folder(tmp_path / "m")
    latents = folder.latents
    assert latents is not None
    autoencoder = latents.autoencoder.model_copy(update={"id": EVIL, "revision": EVIL})
    evil = folder.model_copy(
        update={
            "config": folder.config.model_copy(update={"preset": EVIL}),
            "latents": latents.model_copy(update={"source": EVIL, "autoencoder": autoencoder}),
            "extra": {"prediction": EVIL, "notes": {EVIL: EVIL}},
        }
    )
    origin = {"file": EVIL, "sha256": EVIL, "kind": EVIL}
    imported = evil.model_copy(update={"extra": evil.extra | {"origin": origin}})
    for model in (evil, imported):
        text = card.model_card(model, name=EVIL, where=EVIL, export_format="mpdit", licence=None, grid=True)
        prose, in_block = [], False
        for line in text.splitlines():
            assert not line.lstrip().startswith("rm ")
            if line.startswith("```"):
                in_block = not in_block
            elif in_block and line.startswith("mpdit"):
                words = shlex.split(line, comments=True)
                assert all("rm" not in word or "reboot" in word for word in words)  # it stays within one word
            elif not in_block:
                prose.append(line)
        assert not in_block
        assert "<script" not in re.sub(r"`[^`]*`", "", "\n".join(prose))


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        (markdown.as_text, r"a\`b &lt;i&gt; c\|d \[e\] \*f\* &amp;"),
        (markdown.as_code, "`a'b <i> c|d [e] *f* &`"),
        (markdown.as_shell, "'a`b <i> c|d [e] *f* &'"),
        (markdown.as_python, '"a`b <i> c|d [e] *f* &"'),
    ],
)
def test_filters_of_the_templates(filter_, expected):
    assert filter_("a`b\n<i>\t c|d\x1b[e] *f* &") == expected


def test_escaped_text_is_not_escaped_again():
    once = markdown.as_text("a<b")
    assert markdown.as_text(once) == once


def test_changes_to_the_preset_are_in_the_command(run):
    model = open_model(run)
    optimizer = model.config.train.optimizer.model_copy(update={"betas": (0.9, 0.95)})
    train = model.config.train.model_copy(update={"batch_size": 512, "optimizer": optimizer})
    changed = model.model_copy(update={"config": model.config.model_copy(update={"train": train})})
    words = shlex.split(card.train_command(changed).replace("\\\n", " "))
    assert words[:4] == ["mpdit", "train", "--preset", "tiny"]
    settings = parse_assignments(words[5::2])
    assert settings == {"train": {"batch_size": 512, "optimizer": {"betas": [0.9, 0.95]}}}


@pytest.mark.parametrize("form", ["mpdit", "torch-export"])
def test_paths_of_this_machine_stay_here(run, tmp_path, form, monkeypatch):
    monkeypatch.setattr(graph, "write_torch_export", lambda network, path: 0.0)
    config = run / "checkpoints" / "step-0000007" / "config.json"
    values = json.loads(config.read_text())
    values["latents"] |= {"source": "/home/me/secret/pets", "folder": "/home/me/latents"}
    config.write_text(json.dumps(values))
    export(run, tmp_path / "out", format=form)
    for file in ("config.json", "README.md"):
        assert "/home/me" not in (tmp_path / "out" / file).read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["latents"]["source"] == "pets"


def test_a_local_autoencoder_is_warned_of(run, tmp_path):
    config = run / "checkpoints" / "step-0000007" / "config.json"
    values = json.loads(config.read_text())
    values["latents"]["autoencoder"]["id"] = "/home/me/vae"
    config.write_text(json.dumps(values))
    events: list[Event] = []
    export_model(ExportOptions(model=str(run), out=tmp_path / "out"), report=events.append)
    assert [event.code for event in events if isinstance(event, Warning)] == ["local-autoencoder"]


# Mistakes


def epsilon_model(path: Path) -> None:
    torch.save(with_variance(dense_weights()), path / "DiT-XL.pt")
    import_official(path / "DiT-XL.pt", out=path / "dit", num_heads=4)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"out": "full"}, "folder-not-empty"),
        ({"out": "file.txt"}, "folder-not-empty"),
        ({"format": "gguf"}, "invalid-value"),
        ({"push": "justme"}, "invalid-value"),
        ({"licence": "a\nb"}, "invalid-value"),
        ({"device": "tpu"}, "invalid-value"),
        ({"format": "onnx", "half": True}, "invalid-value"),
        ({"format": "datasets", "push": "me/latents"}, "invalid-value"),
        ({"model": "nowhere"}, None),
        ({"format": "datasets"}, None),
        ({"model": "dit", "format": "diffusers"}, None),
        ({"model": "dit", "format": "onnx"}, None),
        ({"model": "hf:broken"}, None),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(options: dict[str, Any], code, tmp_path, monkeypatch):
    """Where no code is given, another room refuses."""
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "run" / "checkpoints" / "step-0000007")
    if options.get("model") == "dit":
        epsilon_model(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(UserError) as error:
        export_model(validate(ExportOptions, {"model": "run", "out": "out"} | options))
    assert code in (None, error.value.code)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["precious.txt"]
    assert (tmp_path / "file.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


# graphs


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_matrix_form_equals_the_network(path):
    model, g = load_golden(path)
    with torch.no_grad():
        assert_close(graph.exportable(model)(g["x"], g["t"], g["y"]), g["velocity"])


def test_spectral_convolution_as_matrices():
    from mpdit_core.model.time_embeddings.fno import SpectralConvolution

    torch.manual_seed(0)
    fft = SpectralConvolution(8)
    signal = torch.randn(3, 8, 32)
    matrices = graph.MatrixSpectralConvolution(fft, grid=32)
    torch.testing.assert_close(matrices(signal), fft(signal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_graphs_compute_the_same_for_any_batch(run, tmp_path, form):
    difference = export(run, tmp_path / "out", format=form).relative_difference
    assert difference is not None
    assert difference < 1e-5
    written = next((tmp_path / "out").glob("model.*"))
    parts = zipfile.ZipFile(written) if form == "torch-export" else None
    content = b"".join(map(parts.read, parts.namelist())) if parts else written.read_bytes()
    assert b"transformer.py" not in content  # nor any other path of this machine
    model = open_model(run).load()
    for batch in (1, 2, 7):
        inputs = graph.example(model.config, batch)
        if form == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
            feed = {name: tensor.numpy() for name, tensor in zip(("x_t", "t", "labels"), inputs, strict=True)}
            velocity = torch.from_numpy(session.run(["velocity"], feed)[0])
        else:
            velocity = torch.export.load(tmp_path / "out" / "model.pt2").module()(*inputs)
        assert_close(velocity, model(*inputs))


@pytest.mark.parametrize("form", ["onnx", "torch-export", "diffusers"])
def test_a_model_with_every_switch_of_the_backbone(tmp_path, form):
    tiny = load_preset("tiny")
    switches = {"mlp": "swiglu", "norm": "rms", "qk_norm": True, "positions": "both"}
    config = tiny.model_copy(update={"model": tiny.model.model_copy(update=switches)})
    model = model_folder(tmp_path / "m", config=config)
    difference = export(model.path, tmp_path / "out", format=form).relative_difference
    if form == "diffusers":
        loaded = MPDiTTransformer.from_pretrained(tmp_path / "out" / "transformer").network
        inputs = graph.example(config.model, 3)
        assert torch.equal(loaded(*inputs), model.load()(*inputs))
    else:
        assert difference is not None
        assert difference < 1e-5


def test_weights_beside_the_graph(tmp_path, monkeypatch):
    """As above 2 GB; `write_onnx` compares what onnxruntime reads from both files with the network."""
    monkeypatch.setattr(graph, "EXTERNAL_ABOVE", 0)
    model, _ = random_model(dense())
    assert graph.write_onnx(model, tmp_path / "model.onnx") < 1e-4
    files = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    assert set(files) == {"model.onnx", "model.onnx.data"}
    assert files["model.onnx.data"] > 0.8 * 4 * sum(p.numel() for p in model.parameters())


def dense() -> RunConfig:
    """One block and no FNO, so that it is traced quickly."""
    config = load_preset("tiny")
    shape = {"stages": (Stage(4, 1),), "modulation": "per-block", "class_tokens": 0, "time_embedding": "sinusoid"}
    return config.model_copy(update={"model": config.model.model_copy(update=shape)})


def test_a_graph_that_differs_is_refused():
    model, _ = random_model()
    with refused("graph-differs"):
        graph.compare(model, lambda x_t, t, labels: model(x_t, t * 0.9, labels))


# data set


class StoredLatents:
    """What a data set is made from: the shards of a folder of latents, whatever form they store."""

    def __init__(self, shards: list[dict[str, np.ndarray]], folder: ModelFolder):
        assert folder.latents is not None
        self.shards, self.manifest = shards, SimpleNamespace(shards=shards)
        self.spec = folder.latents.model_copy(update={"class_names": ("ant", "bee", "cat")})
        self.hashes = HashCheck()

    def __len__(self) -> int:
        return sum(len(shard["labels"]) for shard in self.shards)

    def shard(self, number: int) -> dict[str, np.ndarray]:
        return self.shards[number]


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [("moments", (2, 4, 4), np.float16), ("mean", (1, 4, 4), np.float16), ("pixels", (3, 8, 8), np.uint8)],
)
def test_a_data_set_holds_what_the_shards_store(name, shape, dtype, tmp_path, monkeypatch):
    from datasets import load_dataset

    random = np.random.default_rng(0)

    def shard(count: int) -> dict[str, np.ndarray]:
        tensors = {key: random.integers(0, 256, (count, *shape)).astype(dtype) for key in (name, f"{name}_flipped")}
        return {**tensors, "labels": random.integers(0, 3, count)}

    stored = StoredLatents([shard(3), shard(2)], model_folder(tmp_path / "m"))
    monkeypatch.setattr(export_job, "LatentFolder", lambda path: stored)
    events: list[Event] = []
    options = ExportOptions(model="latents", out=tmp_path / "hf", format="datasets")
    result = export_model(options, report=events.append)
    assert result.images == 5
    assert [event.done for event in events if isinstance(event, Progress)] == [3, 5]
    data: Any = load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["label"].names == ["ant", "bee", "cat"]
    rows = data.with_format("numpy")[:]
    assert data.features[name].dtype == np.dtype(dtype).name
    for key, column in [(name, name), (f"{name}_flipped", f"{name}_flipped"), ("labels", "label")]:
        assert np.array_equal(rows[column], np.concatenate([shard[key] for shard in stored.shards]))
    assert f"`{name}_flipped`: {np.dtype(dtype).name}" in (tmp_path / "hf" / "README.md").read_text()


def test_a_folder_of_latents_is_a_data_set(latents, tmp_path):
    from datasets import load_dataset

    export(latents, tmp_path / "hf", format="datasets")
    stored = LatentFolder(latents).shard(0)
    data: Any = load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    rows = data.with_format("numpy")[:]
    for name, column in [*((name, name) for name in stored if name != "labels"), ("labels", "label")]:
        assert np.array_equal(rows[column], stored[name])
