"""`mpdit import`: every kind of official file gives the official numbers, and every wrong file is refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import refused
from ecosystem_helpers import dense_weights, model_folder, official_file, with_variance
from golden_files import FILES, assert_close, official_weights, read
from safetensors.torch import save_file

import mpdit_core
from mpdit_cli.app import main
from mpdit_core import import_official, load_model
from mpdit_core.config import ModelConfig, Stage
from mpdit_core.errors import UserError
from mpdit_core.interop import ImportOptions, ImportResult, import_checkpoint
from mpdit_core.interop.official import file_signatures
from mpdit_core.model.transformer import MPDiT
from mpdit_core.reporting import Event, Saved, Warning
from mpdit_core.size import Size

golden = pytest.mark.parametrize("golden_file", FILES, ids=lambda path: path.stem)


def save_as(kind: str, weights: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / f"weights-{kind}.pt"
    match kind:
        case "official":
            return official_file(weights, path)
        case "compiled-ddp":
            return official_file(weights, path, prefix="module._orig_mod.")
        case "plain":
            torch.save(weights, path)
        case "legacy":
            torch.save(weights, path, _use_new_zipfile_serialization=False)
        case "safetensors":
            path = path.with_suffix(".safetensors")
            save_file({"_orig_mod." + name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


@golden
@pytest.mark.parametrize("kind", ["official", "compiled-ddp", "plain", "legacy", "safetensors"])
def test_every_kind_of_file_gives_the_official_velocity(golden_file, kind, tmp_path):
    arguments, g = read(golden_file)
    path = save_as(kind, official_weights(g), tmp_path)
    import_official(path, out=tmp_path / "model", num_heads=arguments["num_heads"])
    model = load_model(tmp_path / "model")
    assert_close(model(g["x"], g["t"], g["y"]), g["velocity"])


@golden
def test_shape_and_switches_are_read_from_the_tensors(golden_file, tmp_path):
    arguments, g = read(golden_file)
    path = save_as("plain", official_weights(g), tmp_path)
    config = import_official(path, out=tmp_path / "model", num_heads=arguments["num_heads"]).config.model
    assert config.width == arguments["hidden_size"]
    assert config.num_heads == arguments["num_heads"]
    assert config.num_classes == arguments["num_classes"]
    assert config.input_size == Size.square(arguments["input_size"])
    assert config.class_tokens == arguments.get("num_condition_tokens", 0)
    assert config.time_embedding == {"fno": "fno", "mlp": "sinusoid", None: "sinusoid"}[arguments.get("time_emb")]
    depths = arguments.get("depth_list") or [
        arguments[key] for key in ("depth_downsample", "depth_upsample", "depth") if key in arguments
    ]
    assert [stage.depth for stage in config.stages] == depths


def test_ema_is_preferred_and_model_can_be_asked_for(tmp_path):
    weights = dense_weights()
    path = official_file(weights, tmp_path / "a.pt")
    ema = import_official(path, out=tmp_path / "ema", num_heads=4)
    raw = import_official(path, out=tmp_path / "raw", num_heads=4, weights="model")
    name = "final_layer.linear.bias"
    assert torch.equal(ema.load().head.linear.bias, weights[name])
    assert torch.equal(raw.load().head.linear.bias, weights[name] + 1)
    assert ema.extra["origin"]["weights"] == "ema"
    assert ema.extra["origin"]["arguments"]["global_batch_size"] == 256


def test_published_normalisation_is_recorded(tmp_path):
    mpdit = import_official(save_as("plain", dense_weights(), tmp_path), out=tmp_path / "m", num_heads=4)
    assert mpdit.latents is not None
    assert mpdit.latents.normalisation.name == "published"
    assert mpdit.latents.normalisation.mean == (5.81, 3.25, 0.12, -2.15)
    assert mpdit.latents.normalisation.std == (4.17, 4.62, 3.71, 3.28)
    assert mpdit.latents.autoencoder.id == "stabilityai/sd-vae-ft-ema"
    assert mpdit.latents.resolution == Size.square(128)
    sit_file = tmp_path / "SiT-tiny.pt"
    torch.save(with_variance(dense_weights()), sit_file)
    sit = import_official(sit_file, out=tmp_path / "s", num_heads=4)
    assert sit.latents is not None
    assert sit.latents.normalisation.std == pytest.approx((1 / 0.18215,) * 4)


def test_published_widths_need_no_heads_and_find_their_preset(tmp_path):
    config = ModelConfig(width=384, num_heads=6, stages=(Stage(2, 12),), input_size=Size.square(32),
                         modulation="per-block", class_tokens=0, time_embedding="sinusoid")  # fmt: skip
    weights = official_names(MPDiT(config))
    torch.save(weights, tmp_path / "dit-s.pt")
    model = import_official(tmp_path / "dit-s.pt", out=tmp_path / "m", kind="mpdit")
    assert model.config.preset == "dit-s-256"
    assert model.config.model == config


def official_names(model: MPDiT) -> dict[str, torch.Tensor]:
    """Our dense model under the official names."""
    parts = {"stages.0.": "", "attention.qkv": "attn.qkv", "attention.out": "attn.proj", "mlp.up": "mlp.fc1",
             "mlp.down": "mlp.fc2", "head.": "final_layer.", "modulation.linear": "adaLN_modulation.1",
             "time_embedding": "t_embedder", "class_embedding.table": "y_embedder.embedding_table",
             "patch_embedding.linear": "x_embedder.proj"}  # fmt: skip
    weights = {"pos_embed": model.get_buffer("stages.0.positions")[None]}
    for name, tensor in model.state_dict().items():
        for ours, theirs in parts.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor.view(-1, model.config.channels, 2, 2) if name == "x_embedder.proj.weight" else tensor
    return weights


# DiT and SiT


def test_the_time_of_sit_is_reversed_exactly(tmp_path):
    _, g = read(FILES[0])
    torch.save(with_variance(dense_weights()), tmp_path / "SiT-XL-2-256x256.pt")
    torch.save(dense_weights(), tmp_path / "as-is.pt")
    folder = import_official(tmp_path / "SiT-XL-2-256x256.pt", out=tmp_path / "sit", num_heads=4)
    assert folder.extra["origin"]["kind"] == "sit"
    assert folder.extra["prediction"] == "velocity"
    assert set(folder.extra["notes"]) == {"variance-dropped", "time-reversed"}
    ours = folder.load()
    theirs = import_official(tmp_path / "as-is.pt", out=tmp_path / "as-is", num_heads=4).load()
    assert_close(ours(g["x"], 1 - g["t"], g["y"]), -g["velocity"])
    for t in torch.linspace(0, 1, 11):
        assert_close(ours(g["x"], t[None], g["y"]), -theirs(g["x"], 1 - t[None], g["y"]))


def test_dit_loses_its_variance_and_is_marked_epsilon(tmp_path):
    _, g = read(FILES[0])
    torch.save(with_variance(dense_weights()), tmp_path / "DiT-XL-2-256x256.pt")
    folder = import_official(tmp_path / "DiT-XL-2-256x256.pt", out=tmp_path / "dit", num_heads=4)
    assert folder.extra["prediction"] == "epsilon"
    assert set(folder.extra["notes"]) == {"variance-dropped", "epsilon-model"}
    assert_close(folder.load()(g["x"], g["t"], g["y"]), g["velocity"])
    with pytest.raises(UserError):
        folder.require_flow()


def test_sit_of_another_path_is_refused(tmp_path):
    path = tmp_path / "SiT.pt"
    torch.save({"ema": with_variance(dense_weights()), "args": {"path_type": "GVP"}}, path)
    with refused("not-a-linear-flow"):
        import_official(path, out=tmp_path / "m", num_heads=4)


CLASSES = 10  # of the golden model, whose class table has one row more


@pytest.mark.parametrize(
    ("name", "arguments", "sigma", "kind"),
    [
        ("0.pt", {"model": "DiT-S/2"}, False, "dit"),
        ("0.pt", {"model": "DiT-S/2"}, True, "dit"),
        ("0.pt", {"model": "SiT-S/2"}, False, "sit"),
        ("0.pt", {"model": "SiT-S/2"}, True, "sit"),
        ("0.pt", {"path_type": "Linear"}, False, "sit"),
        ("SiT-nosigma.pt", {}, False, "sit"),
        ("DiT-nosigma.pt", {}, False, None),
        ("0.pt", {}, False, "mpdit"),
        ("MPDiT-S.pt", {}, False, "mpdit"),
        ("0.pt", {}, True, None),
    ],
)
def test_kind_of_a_dense_model(name: str, arguments: dict, sigma: bool, kind: str | None, tmp_path):
    weights = with_variance(dense_weights()) if sigma else dense_weights()
    torch.save({"ema": weights, "args": arguments}, tmp_path / name)
    if kind is None:
        with refused("ambiguous-kind"):
            import_official(tmp_path / name, out=tmp_path / "m", num_heads=4)
        assert not (tmp_path / "m").exists()
        kind = "sit"
        folder = import_official(tmp_path / name, out=tmp_path / "m", num_heads=4, kind="sit")
    else:
        folder = import_official(tmp_path / name, out=tmp_path / "m", num_heads=4)
    assert folder.extra["origin"]["kind"] == kind
    assert folder.extra["prediction"] == ("epsilon" if kind == "dit" else "velocity")


@pytest.mark.parametrize(
    ("arguments", "classes", "note"),
    [
        ({"num_classes": CLASSES}, CLASSES, False),
        ({"num_classes": CLASSES + 1}, CLASSES + 1, True),
        ({"class_dropout_prob": 0.0}, CLASSES + 1, True),
        ({}, CLASSES, False),
    ],
)
def test_a_class_table_without_null_label_loses_no_class(arguments: dict, classes: int, note: bool, tmp_path):
    weights = dense_weights()
    assert len(weights["y_embedder.embedding_table.weight"]) == CLASSES + 1
    torch.save({"ema": weights, "args": arguments}, tmp_path / "a.pt")
    folder = import_official(tmp_path / "a.pt", out=tmp_path / "m", num_heads=4)
    assert folder.config.model.num_classes == classes
    assert ("no-null-label" in folder.extra["notes"]) == note
    assert len(folder.load().class_embedding.table.weight) == classes + 1


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.model.", "model._orig_mod."])
def test_prefixes_that_all_tensors_share_are_removed(prefix: str, tmp_path):
    weights = dense_weights()
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in weights.items()}}, tmp_path / "a.ckpt")
    model = import_official(tmp_path / "a.ckpt", out=tmp_path / "m", num_heads=4).load()
    assert torch.equal(model.head.linear.bias, weights["final_layer.linear.bias"])


def test_another_image_size_in_the_arguments_is_said(tmp_path):
    torch.save({"ema": dense_weights(), "args": {"image_size": 256}}, tmp_path / "a.pt")
    folder = import_official(tmp_path / "a.pt", out=tmp_path / "m", num_heads=4)
    assert list(folder.extra["notes"]) == ["other-image-size"]


# The job


def test_the_job_returns_what_it_made_and_warns_by_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    official_file(dense_weights(), tmp_path / "My Model.pt")
    events: list[Event] = []
    result = import_checkpoint(ImportOptions(file=Path("My Model.pt"), num_heads=4), report=events.append)
    assert isinstance(result, ImportResult)
    assert (result.model, result.kind, result.weights) == (Path("models/my-model"), "mpdit", "ema")
    assert result.config["stages"] == [[2, 3]]
    assert (result.autoencoder, result.normalisation) == ("stabilityai/sd-vae-ft-ema", "published")
    assert result.notes == {}
    assert [event.path for event in events if isinstance(event, Saved)] == [result.model]
    assert not [event for event in events if isinstance(event, Warning)]
    with refused("folder-not-empty"):
        import_checkpoint(ImportOptions(file=Path("My Model.pt"), num_heads=4))

    torch.save(with_variance(dense_weights()), "DiT.pt")
    import_checkpoint(ImportOptions(file=Path("DiT.pt"), num_heads=4), report=events.append)
    assert [event.code for event in events if isinstance(event, Warning)] == ["epsilon-model"]


def test_other_channels_than_the_published_give_latents_only(tmp_path):
    config = ModelConfig(width=32, num_heads=2, stages=(Stage(2, 1),), input_size=Size.square(8), channels=3,
                         modulation="per-block", class_tokens=0, time_embedding="sinusoid")  # fmt: skip
    torch.save(official_names(MPDiT(config)), tmp_path / "three.pt")
    events: list[Event] = []
    options = ImportOptions(file=tmp_path / "three.pt", out=tmp_path / "m", num_heads=2)
    result = import_checkpoint(options, report=events.append)
    assert result.autoencoder is None
    assert [event.code for event in events if isinstance(event, Warning)] == ["no-autoencoder"]


def test_the_command_prints_the_result(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    official_file(dense_weights(), tmp_path / "a.pt")
    assert main(["import", "a.pt", "--num-heads", "4", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "result"
    assert lines[-1]["model"] == "models/a"


# Wrong files


def written(content: bytes):
    return lambda path: path.write_bytes(content)


def torn_zip(path: Path) -> None:
    official_file(dense_weights(), path)
    path.write_bytes(path.read_bytes()[:-3000])


def torn_safetensors(path: Path) -> None:
    save_file({n: t.contiguous() for n, t in dense_weights().items()}, path)
    path.write_bytes(path.read_bytes()[:-100])


def npz(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, arr_0=np.zeros(3))


def zipped_jar(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


class Evil:
    def __reduce__(self):
        return (eval, ("open('owned','w')",))


def evil(path: Path) -> None:
    torch.save({"ema": dense_weights(), "args": Evil()}, path)


def tensor(name: str):
    return lambda path: torch.save({name: torch.zeros(2, 2)}, path)


def changed(name: str, change):
    def make(path: Path) -> None:
        weights = dense_weights()
        torch.save(weights | {name: change(weights.get(name))}, path)

    return make


def without(name: str):
    return lambda path: torch.save({n: t for n, t in dense_weights().items() if n != name}, path)


def beside(arguments: Any):
    return lambda path: torch.save({"ema": dense_weights(), "args": arguments}, path)


def values(value):
    return lambda path: torch.save(value, path)


HTML = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"
WRONG = {
    "html": (written(HTML), "a.pt", "wrong-file"),
    "html safetensors": (written(HTML), "a.safetensors", "wrong-file"),
    "lfs": (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n"), "a.pt", "wrong-file"),
    "empty": (written(b""), "a.pt", "damaged-file"),
    "folder": (Path.mkdir, "a.pt", "wrong-file"),
    "our model": (model_folder, "model", "already-a-model"),
    "missing": (lambda path: None, "a.pt", "no-such-file"),
    "torn zip": (torn_zip, "a.pt", "damaged-file"),
    "torn safetensors": (torn_safetensors, "a.safetensors", "damaged-file"),
    "npz": (npz, "a.pt", "wrong-file"),
    "zip": (zipped_jar, "a.pt", "wrong-file"),
    "code": (evil, "a.pt", "unsafe-file"),
    "numpy pickle": (written(pickle.dumps({"weights": np.zeros(3)})), "a.pkl", "wrong-file"),
    "numpy number": (beside(np.float64(3)), "a.pt", "foreign-object"),
    "path": (beside(Path("data")), "a.pt", "foreign-object"),
    "fifo": (os.mkfifo, "a.pt", "no-such-file"),
    "nan": (changed("blocks.1.mlp.fc1.bias", lambda t: t * float("nan")), "a.pt", "not-finite"),
    "integers": (changed("blocks.1.mlp.fc1.bias", lambda t: t.int()), "a.pt", "no-weights"),
    "two names": (changed("module.blocks.1.mlp.fc1.bias", lambda t: torch.zeros(3)), "a.pt", "ambiguous-weights"),
    "two blocks": (changed("downsample_blocks.1.mlp.fc1.bias", lambda t: torch.zeros(3)), "a.pt", "ambiguous-weights"),
    "larger than the file": (
        changed("pos_embed", lambda t: torch.zeros(1).expand(1, 9**9, 9**9)),
        "a.pt",
        "damaged-file",
    ),
    "deep": (changed("blocks.999999999.mlp.fc1.bias", lambda t: torch.zeros(3)), "a.pt", "too-large"),
    "no features": (changed("x_embedder.proj.weight", lambda t: t[:0]), "a.pt", "unknown-architecture"),
    "short bias": (changed("final_layer.linear.bias", lambda t: t[:3]), "a.pt", "tensors-do-not-fit"),
    "classes": (beside({"num_classes": 77}), "a.pt", "classes-do-not-fit"),
    "gzip": (written(gzip.compress(b"hello")), "a.pt", "wrong-file"),
    "text": (written(b"hello"), "a.pt", "wrong-file"),
    "number": (values(3), "a.pt", "no-weights"),
    "list": (values([torch.zeros(2)]), "a.pt", "no-weights"),
    "no weights": (values({"epoch": 3}), "a.pt", "no-weights"),
    "sd unet": (tensor("model.diffusion_model.input_blocks.0.0.weight"), "a.pt", "wrong-model"),
    "kohya lora": (tensor("lora_unet_down_blocks_0.lora_up.weight"), "a.pt", "wrong-model"),
    "anything": (tensor("fc.weight"), "a.pt", "unknown-architecture"),
    "no positions": (without("pos_embed"), "a.pt", "unknown-architecture"),
    "hole": (without("blocks.1.mlp.fc1.bias"), "a.pt", "tensors-do-not-fit"),
    "extra part": (changed("blocks.0.attn.rope.weight", lambda t: torch.zeros(3)), "a.pt", "unknown-architecture"),
    "learnt positions": (changed("pos_embed", lambda t: t * 1.5), "a.pt", "unknown-positions"),
    "bad rank": (changed("x_embedder.proj.weight", lambda t: t.flatten(1)), "a.pt", "unknown-architecture"),
    "swiglu": (changed("blocks.0.mlp.w12.weight", lambda t: torch.zeros(3)), "a.pt", "wrong-model"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused_and_nothing_is_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, file, code = WRONG[name]
    make(tmp_path / file)
    before = sorted(p.name for p in tmp_path.iterdir())
    with refused(code):
        import_official(file, out="out", num_heads=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


HEADS = [
    b"<!DOCTYPE html>", b"version https://git-lfs.github.com", b"\x1f\x8b\x08", b"\x93NUMPY\x01", b"GGUF\x03",
    b"\x08\x07\x12\x07pytorch", b"\x89HDF\r\n", b"\xff\xd8\xff\xe0", b'{"a": 1}', b"Entry not found",
]  # fmt: skip
NAMES = [
    "transformer.blocks.0.attn.lora_A.weight", "stages.0.blocks.0.mlp.up.weight",
    "model.diffusion_model.input_blocks.0.0.weight", "down_blocks.0.resnets.0.conv1.weight", "decoder.up.0.weight",
    "double_blocks.0.img_attn.qkv.weight", "transformer_blocks.0.attn1.to_q.weight", "blocks.0.cross_attn.q.weight",
    "projectors.0.weight", "blocks.0.mlp.w12.weight", "model.layers.0.self_attn.q_proj.weight",
    "Mixed_5b.branch1x1.conv.weight", "layer1.0.conv1.weight", "patch_embed.proj.weight",
]  # fmt: skip


def test_every_signature_is_told_from_the_others():
    assert [file_signatures.like_bytes(head) for head in HEADS] == [what for _, what in file_signatures.BYTES]
    assert [file_signatures.like_tensors([n]) for n in NAMES] == [what for _, what in file_signatures.TENSORS]
    assert file_signatures.like_bytes(b"hello") is None
    assert file_signatures.like_tensors(dense_weights()) is None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"num_heads": 7}, "invalid-value"),
        ({"num_heads": None}, "unknown-num-heads"),
        ({"kind": "pixart"}, "invalid-value"),
        ({"weights": "model"}, "no-such-weights"),
        ({"weights": "last"}, "invalid-value"),
        ({"out": "a.pt"}, "folder-not-empty"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(arguments: dict[str, Any], code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dense_weights(), "a.pt")
    with refused(code):
        import_official("a.pt", **({"out": "out", "num_heads": 4} | arguments))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_import_official_is_offered_at_the_top():
    assert mpdit_core.import_official is import_official


def test_every_truncation_is_a_user_error(tmp_path):
    """Cut anywhere, a checkpoint is refused by a user error, and no part of a model is left."""
    buffer = io.BytesIO()
    torch.save({"ema": dense_weights()}, buffer)
    whole = buffer.getvalue()
    path = tmp_path / "cut.pt"
    for size in range(1, len(whole), len(whole) // 23):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError) as error:
            import_official(path, out=tmp_path / "m", num_heads=4)
        assert error.value.code in ("damaged-file", "wrong-file", "unsafe-file")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_change_of_a_byte_is_a_model_or_a_user_error(form: str, tmp_path):
    """Bytes of the pickle or header, where the structure is: 40 seeded changes for each form."""
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt")
    if form == "safetensors":
        save_file({n: t.contiguous() for n, t in dense_weights().items()}, path)
    else:
        torch.save({"ema": dense_weights()}, path, _use_new_zipfile_serialization=form == "zip")
    whole, draw = path.read_bytes(), random.Random(15)
    for number in range(40):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(min(3000, len(whole)))] = draw.choice([0, 255, draw.randrange(256)])
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            import_official(path, out=tmp_path / str(number), num_heads=4)
