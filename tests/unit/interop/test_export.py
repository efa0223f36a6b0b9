"""`mpdit export`: bit-equal folders, cards, the diffusers pipeline, graphs, latents as a data set; and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import encode, image_folder
from ecosystem_helpers import dense_weights, model_folder, random_model, with_variance
from golden_files import FILES, assert_close
from golden_files import load_model as load_golden
from safetensors.torch import load_file

from mpdit_cli.app import main
from mpdit_core.interop.export import graph
from mpdit_core.interop.export.diffusers_folder import make_pipeline
from mpdit_core.interop.official import import_official
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.seeding import generator
from mpdit_core.sampling.generator import SampleOptions, generate


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with a checkpoint at step 7, previews and an evaluation."""
    folder = tmp_path / "runs" / "tiny-1"
    model_folder(folder / "checkpoints" / "step-0000007")
    (folder / "samples").mkdir()
    for step in (4, 7):
        (folder / "samples" / f"step-{step:07d}.png").write_bytes(b"picture of %d" % step)
        (folder / "samples" / f"step-{step:07d}-raw.png").write_bytes(b"raw")
    (folder / "evals").mkdir()
    values = {"metrics": {"fid": 12.3456789}, "protocol": {"samples": 50000, "reference": "/home/me/ref.npz"}}
    (folder / "evals" / "fid.json").write_text(json.dumps(values))
    return folder


def export(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


def same_bits(a: Path, b: Path) -> bool:
    x, y = load_file(a), load_file(b)
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) and x[n].dtype == y[n].dtype for n in x)


def test_export_is_bit_equal_and_opens_as_a_model(run, tmp_path, capsys):
    assert export(run, tmp_path / "out", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    original, exported = open_model(run), open_model(tmp_path / "out")
    assert same_bits(original.path / "model.safetensors", exported.path / "model.safetensors")
    assert result["weights_sha256"] == original.weights_sha256
    assert (exported.config, exported.step, exported.images_seen) == (original.config, 7, 56)
    assert (tmp_path / "out" / "samples.png").read_bytes() == b"picture of 7"
    assert export(tmp_path / "out", tmp_path / "twice") == 0
    assert same_bits(original.path / "model.safetensors", tmp_path / "twice" / "model.safetensors")
    assert (tmp_path / "twice" / "samples.png").exists()


def test_half_is_exactly_the_rounded_weights(run, tmp_path):
    assert export(run, tmp_path / "half", "--half") == 0
    stored = load_file(tmp_path / "half" / "model.safetensors")
    for name, tensor in load_file(open_model(run).path / "model.safetensors").items():
        assert torch.equal(stored[name], tensor.half())
    assert next(open_model(tmp_path / "half").load().parameters()).dtype == torch.float32


def test_card_says_what_a_reader_wants(run, tmp_path):
    assert export(run, tmp_path / "out", "--licence", "cc-by-4.0") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    parameters = sum(p.numel() for p in open_model(run).load().parameters())
    for text in (
        "license: cc-by-4.0",
        "preset `tiny`",
        f"{parameters:,}",
        "| fid | 12.3457 |",
        "<details><summary>protocol of fid</summary>",
        "protocol.samples | 50000",
        "mpdit train --preset tiny",
        "encode-latents digits --resolution 16 --autoencoder pixels-gray",
        "![samples](samples.png)",
        "images seen | 56",
    ):
        assert text in card, text
    assert "/home/me" not in card
    assert str(tmp_path.parent) not in card


def test_paths_of_this_machine_do_not_leave(run, tmp_path):
    config = run / "checkpoints" / "step-0000007" / "config.json"
    values = json.loads(config.read_text())
    values["latents"] |= {"source": "/home/me/secret/pets", "folder": "/home/me/latents"}
    config.write_text(json.dumps(values))
    assert export(run, tmp_path / "out") == 0
    for file in ("config.json", "README.md"):
        assert "/home/me" not in (tmp_path / "out" / file).read_text()
    assert open_model(tmp_path / "out").latents.source == "pets"  # pyright: ignore


def epsilon_model(path: Path) -> None:
    torch.save(with_variance(dense_weights()), path / "DiT-XL.pt")
    import_official(path / "DiT-XL.pt", out=path / "dit", num_heads=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "is not a folder"),
        (["run", "full"], "exists and is not empty"),
        (["run", "file.txt"], "exists and is not empty"),
        (["run", "out", "--format", "gguf"], "gguf"),
        (["run", "out", "--push", "justme"], "ORG/NAME"),
        (["run", "out", "--format", "onnx", "--half"], "--half with --format onnx"),
        (["run", "out", "--format", "datasets"], "holds no latents"),
        (["dit", "out", "--format", "diffusers"], "predicts noise"),
        (["dit", "out", "--format", "onnx"], "predicts noise"),
        (["run", "out", "--device", "tpu"], "--device tpu"),
        (["hf:broken", "out"], "not the address"),
    ],
)
def test_mistakes_get_one_message(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "run" / "checkpoints" / "step-0000007")
    epsilon_model(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    (tmp_path / "file.txt").write_text("mine")
    assert export(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["precious.txt"]
    assert (tmp_path / "file.txt").read_text() == "mine"
    if "--push" not in arguments:
        assert not (tmp_path / "out").exists()


# diffusers


def samples(model: ModelFolder, **options) -> tuple[list[int], np.ndarray, list[torch.Generator]]:
    settings = SampleOptions(num_samples=6, num_steps=9, seed=3, **options)
    batch = next(generate(model, settings, device=torch.device("cpu"), world=World()))
    assert batch.images is not None
    generators = [generator(3, "noise", i) for i in batch.indices]
    return batch.labels, batch.images.permute(0, 2, 3, 1).numpy(), generators


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_pipeline_gives_the_images_of_mpdit_sample(run, tmp_path, guidance_scale):
    from mpdit_core.interop.pipeline import MPDiTPipeline

    assert export(run, tmp_path / "pipe", "--format", "diffusers") == 0
    pipe = MPDiTPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    model = open_model(run)
    for name, tensor in model.load().named_parameters():
        assert torch.equal(pipe.transformer.network.get_parameter(name), tensor)
    labels, expected, generators = samples(model, guidance_scale=guidance_scale)
    images = pipe(labels, guidance_scale=guidance_scale, generator=generators, num_inference_steps=9).images
    difference = np.abs(np.stack([np.asarray(image) for image in images]).astype(int) - expected)
    assert expected.std() > 10
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_pipeline_keeps_the_conventions(run):
    pipe = make_pipeline(open_model(run))
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((step, float(timestep), tuple(tensors["latents"].shape)))
        pipeline._interrupt = step == 1
        return {"latents": tensors["latents"] * 0}

    noise = torch.randn(2, 1, 16, 16)
    latents = pipe([1, 2], latents=noise, num_inference_steps=4, output_type="latent", return_dict=False,
                   callback_on_step_end=watch)[0]  # fmt: skip
    assert seen == [(0, 1000.0, (2, 1, 16, 16)), (1, 750.0, (2, 1, 16, 16))]
    assert not latents.any()
    assert pipe.num_timesteps == 4
    assert pipe.get_label_ids(["three", "nine"]) == [3, 9]
    assert pipe([0], num_inference_steps=1, output_type="pt").images.shape == (1, 3, 16, 16)
    assert pipe([0], num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)
    for wrong in ({"class_labels": [11]}, {"class_labels": []}, {"class_labels": [0], "output_type": "jpg"},
                  {"class_labels": [0], "latents": noise}):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011 - any of the four messages
            pipe(**wrong)
    with pytest.raises(ValueError, match="1 generators for 2 class_labels"):
        pipe([0, 1], generator=[torch.manual_seed(0)])
    with pytest.raises(ValueError, match="no class is called"):
        pipe.get_label_ids("eleven")


def test_diffusers_itself_opens_the_folder(run, tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = str(tmp_path / "pipe")
    assert export(run, folder, "--format", "diffusers") == 0
    pipe: Any = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    ours = make_pipeline(open_model(run))
    assert type(pipe) is type(ours)
    assert type(DiffusionPipeline.from_pretrained(folder)) is type(ours)  # mpdit_core.interop.pipeline is imported here
    noise = torch.randn(2, 1, 16, 16, generator=torch.manual_seed(0))
    a, b = (p([1, 2], latents=noise, num_inference_steps=3, output_type="latent").images for p in (pipe, ours))
    assert torch.equal(a, b)


def test_pipeline_offloads_between_models_and_changes_nothing(run):
    """The CPU in the accelerator's place: the hooks fire in the same order, only the moves are none."""
    pytest.importorskip("accelerate")
    noise = torch.randn(2, 1, 16, 16, generator=torch.manual_seed(0))
    plain = make_pipeline(open_model(run))([1, 2], latents=noise, num_inference_steps=3, output_type="pt").images
    pipe = make_pipeline(open_model(run))
    pipe.enable_model_cpu_offload(device="cpu")
    order = []

    def tell(before, said):
        return lambda *given, **more: (order.append(said), before(*given, **more))[1]

    hooks = pipe._all_hooks
    for hook in hooks:
        name = next(n for n, model in pipe.components.items() if model is hook.model)
        hook.model._hf_hook.pre_forward = tell(hook.model._hf_hook.pre_forward, name)
    assert pipe.vae._hf_hook.prev_module_hook.model is pipe.transformer  # leaves when the VAE comes
    images = pipe([1, 2], latents=noise, num_inference_steps=3, output_type="pt").images
    assert torch.equal(torch.as_tensor(images), torch.as_tensor(plain))
    assert order == ["transformer"] * 3 + ["vae"]
    assert all(new is not old for new, old in zip(pipe._all_hooks, hooks, strict=True))  # all sent home at the end


def test_progress_bar_shows_the_steps_unless_it_is_off(run, capfd):
    pipe = make_pipeline(open_model(run))
    pipe([1], num_inference_steps=3, output_type="latent")
    assert "3/3" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe([1], num_inference_steps=3, output_type="latent")
    assert capfd.readouterr().err == ""


def test_callbacks_of_diffusers_and_what_they_cannot_have(run):
    from diffusers.callbacks import PipelineCallback

    class Halve(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012 - the name and kind diffusers asks for

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return {"latents": callback_kwargs["latents"] / 2}

    pipe = make_pipeline(open_model(run))
    noise = torch.randn(1, 1, 16, 16)
    plain, halved = (
        pipe([1], latents=noise, num_inference_steps=1, output_type="latent", callback_on_step_end=callback).images
        for callback in (None, Halve(cutoff_step_ratio=None, cutoff_step_index=0))
    )
    assert torch.equal(halved, plain / 2)
    with pytest.raises(ValueError, match=r"\['prompt_embeds'\]: only latents"):
        pipe([1], callback_on_step_end=lambda *_: {}, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_pipeline_with_an_autoencoder_and_published_normalisation(tmp_path):
    """An imported model of four channels, decoded by an AutoencoderKL in a local folder."""
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    from mpdit_core.interop.pipeline import MPDiTPipeline

    torch.manual_seed(0)
    sides = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4, **sides).save_pretrained(
        tmp_path / "vae"
    )
    torch.save(dense_weights(), tmp_path / "a.pt")
    model = import_official(tmp_path / "a.pt", out=tmp_path / "m", num_heads=4, autoencoder=str(tmp_path / "vae"))
    assert export(tmp_path / "m", tmp_path / "pipe", "--format", "diffusers") == 0
    pipe = MPDiTPipeline.from_pretrained(tmp_path / "pipe")
    labels, expected, generators = samples(model)
    images = pipe(labels, guidance_scale=1, generator=generators, num_inference_steps=9).images
    difference = np.abs(np.stack([np.asarray(image) for image in images]).astype(int) - expected)
    assert images[0].size == (128, 128)
    assert expected.std() > 1
    assert difference.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipeline_runs_in_half_precision(run, tmp_path, dtype):
    from mpdit_core.interop.pipeline import MPDiTPipeline

    make_pipeline(open_model(run)).save_pretrained(tmp_path / "pipe")
    whole, half = (MPDiTPipeline.from_pretrained(tmp_path / "pipe", dtype=d) for d in (torch.float32, dtype))
    noise = torch.randn(2, 1, 16, 16, generator=torch.manual_seed(0))
    a, b = (p([1, 2], latents=noise, num_inference_steps=5, output_type="latent").images for p in (whole, half))
    assert (a - b).abs().max() < 0.03 * a.abs().max()


# graphs


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_matrix_form_equals_the_network(path):
    model, g = load_golden(path)
    with torch.no_grad():
        assert_close(graph.exportable(model)(g["x"], g["t"], g["y"]), g["velocity"])


def test_spectral_convolution_as_matrices():
    from mpdit_core.model.embeddings import SpectralConvolution

    torch.manual_seed(0)
    fft = SpectralConvolution(8)
    signal = torch.randn(3, 8, 32)
    matrices = graph.MatrixSpectralConvolution(fft, grid=32)
    torch.testing.assert_close(matrices(signal), fft(signal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_graphs_compute_the_same_for_any_batch(run, tmp_path, form, capsys):
    assert export(run, tmp_path / "out", "--format", form, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["relative_difference"] < 1e-5
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


def test_weights_beside_the_graph(tmp_path, monkeypatch):
    """As above 2 GB; `write_onnx` compares what onnxruntime reads from both files with the network."""
    monkeypatch.setattr(graph, "EXTERNAL_ABOVE", 0)
    model, _ = random_model()
    assert graph.write_onnx(model, tmp_path / "model.onnx") < 1e-4
    files = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    assert set(files) == {"model.onnx", "model.onnx.data"}
    assert files["model.onnx.data"] > 0.8 * 4 * sum(p.numel() for p in model.parameters())


def test_a_graph_that_differs_is_refused():
    model, _ = random_model()
    with pytest.raises(ValueError, match="differs from the network"):
        graph.compare(model, lambda x_t, t, labels: model(x_t, t * 0.9, labels))


# data set


def test_latents_are_a_hugging_face_data_set(latents, tmp_path):
    from datasets import load_dataset

    from mpdit_core.data.latents import LatentFolder

    assert export(latents, tmp_path / "hf", "--format", "datasets") == 0
    folder = LatentFolder(latents)
    data = load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == len(folder)  # pyright: ignore
    assert data.features["label"].names == list(folder.manifest.class_names)  # pyright: ignore
    moments, labels = folder.batch(range(len(folder)))
    rows = data.with_format("torch")[:]
    assert torch.equal(torch.as_tensor(rows["moments"]).float(), moments)
    assert torch.equal(torch.as_tensor(rows["label"]), labels)


def test_stored_mirror_images_come_along(tmp_path):
    from datasets import load_dataset

    from mpdit_core.data.latents import LatentFolder

    assert encode(image_folder(tmp_path / "images"), tmp_path / "latents", "--flip") == 0
    assert export(tmp_path / "latents", tmp_path / "hf", "--format", "datasets") == 0
    data = load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    rows: Any = data.with_format("torch")[:]
    folder = LatentFolder(tmp_path / "latents")
    everything = range(len(folder))
    plain, mirrored = folder.batch(everything)[0], folder.batch(everything, flip=[True] * len(folder))[0]
    assert not torch.equal(plain, mirrored)
    assert torch.equal(torch.as_tensor(rows["moments"]).float(), plain)
    assert torch.equal(torch.as_tensor(rows["moments_flipped"]).float(), mirrored)
