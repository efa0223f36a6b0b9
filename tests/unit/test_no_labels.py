"""Images without classes, from an unlabelled source to samples; and data with a single class."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pytest
from archive_bytes import archive, picture
from data_helpers import encode, image_folder, photo, refused
from ecosystem_helpers import dense_weights
from sample_helpers import run_sample, run_view, spec, write_model
from train_helpers import options, train_and_watch

from mpdit_cli.app import main
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.sources import open_source, read_items, source_notes
from mpdit_core.evaluation import EvaluateOptions, evaluate
from mpdit_core.interop import ExportOptions, export_model
from mpdit_core.interop.official.names import convert_state_dict
from mpdit_core.interop.pipeline import make_pipeline
from mpdit_core.model.compute import count
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.testing import check_dataset
from mpdit_core.training import DryRunResult, train


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten images in one folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(10):
        photo(n).save(folder / f"{n}.png")
    return folder


def test_images_of_one_folder_have_no_classes(pictures: Path, tmp_path: Path):
    data = open_source(str(pictures))
    check_dataset(data)
    assert (data.class_names(), {item.label for item in data.items()}) == ([], {0})
    assert len(source_notes(data)) == 1
    path = tmp_path / "flat.tar"
    path.write_bytes(archive(("0.png", picture(1)), ("1.png", picture(2))))
    assert open_source(str(path)).class_names() == []


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_without_a_column_of_labels(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = {"image": [str(path) for path in sorted(pictures.glob("*.png"))]}
    hub = tmp_path / "hub"
    hub.mkdir()
    rows = datasets.Dataset.from_dict(table, features=datasets.Features({"image": datasets.Image()}))
    rows.to_parquet(hub / "train-00000-of-00001.parquet")
    data = open_source(f"hf:{hub}", streaming=streaming)
    assert data.class_names() == []
    assert len(source_notes(data)) == 1
    if streaming:
        monkeypatch.setattr(type(data), "count", lambda _: 10)
    read = [(item.label, decode().size) for item, decode in read_items(data, 0, 10)]
    assert read == [(0, (20, 14))] * 10


def test_a_list_of_classes_needs_classes(pictures: Path, tmp_path: Path):
    listed = tmp_path / "classes.txt"
    listed.write_text("ant\nbee\n")
    with refused("no-labels", "classes.txt"):
        open_source(str(pictures), classes=listed).items()


def test_latents_without_classes(pictures: Path, tmp_path: Path):
    result = encode(pictures, tmp_path / "latents")
    assert result.classes == 0
    latents = LatentFolder(result.latents)
    assert (latents.spec.class_names, latents.spec.class_name(0)) == ((), "")
    assert latents.labels.tolist() == [0] * 10
    encode(pictures, tmp_path / "latents", verify=True)


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """An unconditional model of grey images."""
    return write_model(tmp_path / "model", latents=spec().model_copy(update={"class_names": ()}), num_classes=0)


@pytest.mark.parametrize("class_tokens", [0, 2])
def test_a_model_without_classes_has_the_null_label_alone(tmp_path: Path, class_tokens: int):
    network = write_model(tmp_path / "m", num_classes=0, class_tokens=class_tokens).load()
    assert len(network.class_embedding.table.weight) == 1
    assert sum(p.numel() for p in network.parameters()) == count(network.config).parameters


def test_training_needs_no_classes(pictures: Path, tmp_path: Path):
    latents = encode(pictures, tmp_path / "latents", resolution=16, autoencoder="pixels-gray").latents
    wanted = options(latents, tmp_path / "run", "preview.every=4", "train.batch_size=4", steps=4)
    train_and_watch(wanted)
    config = open_model(tmp_path / "run").config
    assert config.model.num_classes == 0
    assert (tmp_path / "run" / "samples" / "step-0000004.png").is_file()
    train_and_watch(options(latents, tmp_path / "next", "train.batch_size=4", steps=1, init_from=str(tmp_path / "run")))


@pytest.mark.parametrize("form", ["mpdit", "torch-export", "diffusers"])
def test_exports_of_a_model_without_classes(model: ModelFolder, tmp_path: Path, form: Any):
    export_model(ExportOptions(model=str(model.path), out=tmp_path / "out", format=form))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "An unconditional" in card
    assert "classes=[0, 1]" not in card


def test_a_data_set_without_labels(pictures: Path, tmp_path: Path):
    latents = encode(pictures, tmp_path / "latents").latents
    export_model(ExportOptions(model=str(latents), out=tmp_path / "out", format="datasets"))
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.column_names == ["pixels"]


def test_an_official_model_without_classes():
    weights = dense_weights()
    weights["y_embedder.embedding_table.weight"] = weights["y_embedder.embedding_table.weight"][-1:]
    assert convert_state_dict(weights, num_heads=2)[0].num_classes == 0


def test_samples_and_views_without_classes(model: ModelFolder, tmp_path: Path):
    off = {"guidance_scale": 1.0}
    samples = run_sample(model, out=tmp_path / "samples", **off)
    assert len(list(samples.samples.glob("*.png"))) == 10
    assert run_view(model, out=tmp_path / "between", interpolate=(0, 1)).data["classes"] == [0]
    for name, asked in (("sweep", {"sweep": ("seed=0,1",)}), ("trajectory", {"trajectory": True})):
        assert run_view(model, out=tmp_path / name, **asked).image.is_file()


def test_nearest_without_classes(pictures: Path, tmp_path: Path):
    latents = encode(pictures, tmp_path / "latents", resolution=16, autoencoder="pixels-gray").latents
    model = write_model(tmp_path / "m", latents=LatentFolder(latents).spec, num_classes=0)
    assert run_view(model, out=tmp_path / "nearest", nearest="latents").image.is_file()


@pytest.mark.parametrize(
    "asked",
    [
        {"guidance_scale": 2.0},
        {"guidance_scale": 1.0, "classes": "0"},
        {"guidance_scale": 1.0, "classes": "random"},
        {"guidance_scale": 1.0, "by_class": True},
        {"guidance_scale": 1.0, "sweep": ("guidance_scale=1,2",)},
    ],
)
def test_what_needs_classes_is_refused(model: ModelFolder, tmp_path: Path, asked: dict[str, Any]):
    with refused("no-classes"):
        run_sample(model, out=tmp_path / "samples", **asked)
    assert not (tmp_path / "samples").exists()


def test_autoguidance_needs_no_classes(model: ModelFolder, tmp_path: Path):
    guide = write_model(tmp_path / "guide", seed=1, latents=model.latents or False, num_classes=0)
    assert run_sample(model, out=tmp_path / "s", guidance_scale=2.0, guide=str(guide.path)).passes == 8


def test_previews_without_classes_are_unguided(pictures: Path, tmp_path: Path):
    latents = encode(pictures, tmp_path / "latents", resolution=16, autoencoder="pixels-gray").latents
    plan = train(options(latents, tmp_path / "run", dry_run=True))
    assert isinstance(plan, DryRunResult)
    assert plan.config.preview.guidance_scale == 1
    with refused("no-classes"):
        train(options(latents, tmp_path / "run", "preview.guidance_scale=2.0", dry_run=True))


def test_evaluation_without_classes(pictures: Path, tmp_path: Path):
    latents = encode(pictures, tmp_path / "latents", resolution=16, autoencoder="pixels-gray").latents
    model = write_model(tmp_path / "m", latents=LatentFolder(latents).spec, num_classes=0)
    wanted = {"what": str(model.path), "num_samples": 8, "num_steps": 2, "features": "digits", "metrics": ("fid", "is")}
    record = evaluate(EvaluateOptions(**wanted, device="cpu", out=tmp_path / "evals"))
    assert record.value("is") is not None
    with refused("no-classes"):
        evaluate(EvaluateOptions(**wanted, device="cpu", guidance_scale=1.5))


def test_the_pipeline_without_classes(model: ModelFolder):
    pipe: Any = make_pipeline(model)
    assert len(pipe([0, 0], num_inference_steps=2).images) == 2
    with refused("no-classes"):
        pipe([0], guidance_scale=2.0, num_inference_steps=1)


def test_one_class_only(tmp_path: Path):
    latents = encode(image_folder(tmp_path / "x", ("cat",)), tmp_path / "latents", resolution=16).latents
    train_and_watch(options(latents, tmp_path / "run", "preview.every=2", "train.batch_size=4", steps=2))
    model = open_model(tmp_path / "run")
    assert model.config.model.num_classes == 1
    assert run_sample(model, out=tmp_path / "samples", num_samples=4, guidance_scale=2.0, by_class=True).images == 4


def test_three_commands_from_a_folder_of_pictures_to_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for n in range(40):
        photo(n, (30, 24)).save(f"pictures/{n}.png")
    assert (
        main(["encode-latents", "pictures/", "--autoencoder", "pixels", "--resolution", "24", "--device", "cpu"]) == 0
    )
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "mpdit train" in line)
    tiny = ("model.width=16", "model.num_heads=2", "train.batch_size=4")
    small = ["--steps", "1", "--device", "cpu", *(word for value in tiny for word in ("--set", value))]
    assert main([*shlex.split(line.partition("mpdit ")[2]), *small, "--run", "runs/typed"]) == 0
    assert main(["train", *small]) == 0
    assert open_model(Path("runs/s-32-1")).config == open_model(Path("runs/typed")).config
    assert main(["sample", "runs/s-32-1", "--num-steps", "1", "--device", "cpu"]) == 0
    assert len(list(Path("samples/s-32-1-1/images").glob("*.png"))) == 16
