"""`MPDiTPipeline`: the images of `mpdit sample`, the call of `DiTPipeline`, the conventions of diffusers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import refused, save_autoencoder
from ecosystem_helpers import dense_weights, model_folder

from mpdit_core import MPDiTPipeline
from mpdit_core.config import ModelConfig
from mpdit_core.interop import ExportOptions, export_model, import_official
from mpdit_core.interop.pipeline import MPDiTTransformer, make_pipeline
from mpdit_core.models.model_folder import ModelFolder
from mpdit_core.runtime.seeding import generator
from mpdit_core.sampling import Generator, SamplingOptions


@pytest.fixture
def model(tmp_path) -> ModelFolder:
    return model_folder(tmp_path / "model")


def export(model: ModelFolder, folder: Path) -> None:
    export_model(ExportOptions(model=str(model.path), out=folder, format="diffusers"))


def samples(model: ModelFolder, **options: Any) -> tuple[list[int], np.ndarray, list[torch.Generator]]:
    """Labels and images [6, H, W, 3] of `mpdit sample`, and the generators of their noise."""
    engine = Generator(model, SamplingOptions(num_steps=9, seed=3, **options), device="cpu", num_samples=6)
    batch = next(engine.batches())
    generators = [generator(3, "noise", i) for i in batch.indices]
    return batch.labels, batch.images.permute(0, 2, 3, 1).numpy(), generators


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_pipeline_gives_the_images_of_mpdit_sample(model, tmp_path, guidance_scale):
    export(model, tmp_path / "pipe")
    pipe: Any = MPDiTPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    for name, tensor in model.load().named_parameters():
        assert torch.equal(pipe.transformer.network.get_parameter(name), tensor)
    labels, expected, generators = samples(model, guidance_scale=guidance_scale)
    images = pipe(labels, guidance_scale=guidance_scale, generator=generators, num_inference_steps=9).images
    difference = np.abs(np.stack([np.asarray(image) for image in images]).astype(int) - expected)
    assert expected.std() > 10
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_the_transformer_takes_every_setting_of_the_network():
    taken = inspect.signature(MPDiTTransformer.__init__).parameters.keys()
    assert ModelConfig.model_fields.keys() - taken == {"spectral_init_scale"}  # of the initialisation alone


def test_pipeline_keeps_the_conventions(model):
    pipe: Any = make_pipeline(model)
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"class_labels": [11]},
        {"class_labels": []},
        {"output_type": "jpg"},
        {"latents": torch.zeros(2, 1, 16, 16)},
        {"generator": [torch.manual_seed(0), torch.manual_seed(1)]},
        {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
    ],
)
def test_pipeline_refuses_what_cannot_be(model, wrong):
    with refused("invalid-value"):
        make_pipeline(model)(**({"class_labels": [0]} | wrong))


def test_a_name_that_two_classes_have_is_not_guessed(model):
    """ImageNet has two cranes (134 and 517) and two maillots."""
    plain = make_pipeline(model)
    pipe: Any = MPDiTPipeline(
        plain.transformer, plain.vae, plain.scheduler, id2label={3: "ibis", 4: "crane, a bird", 9: "crane"}
    )
    assert pipe.get_label_ids("a bird") == [4]
    assert pipe.get_label_ids(["ibis", "a bird"]) == [3, 4]
    for name, code in [("crane", "ambiguous-class"), ("eleven", "no-such-class")]:
        with refused(code):
            pipe.get_label_ids([name])
    assert pipe.labels == {"a bird": 4, "ibis": 3}
    assert len(pipe([4, 9], num_inference_steps=1).images) == 2  # ids stay possible


def test_diffusers_itself_opens_the_folder(model, tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = str(tmp_path / "pipe")
    export(model, Path(folder))
    pipe: Any = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    ours: Any = make_pipeline(model)
    assert type(pipe) is type(ours)
    assert type(DiffusionPipeline.from_pretrained(folder)) is type(ours)  # MPDiTPipeline is imported here
    noise = torch.randn(2, 1, 16, 16, generator=torch.manual_seed(0))
    a, b = (p([1, 2], latents=noise, num_inference_steps=3, output_type="latent").images for p in (pipe, ours))
    assert torch.equal(a, b)


def test_pipeline_offloads_between_models_and_changes_nothing(model):
    """The CPU stands for the accelerator: the hooks run in the same order, but nothing moves."""
    pytest.importorskip("accelerate")
    noise = torch.randn(2, 1, 16, 16, generator=torch.manual_seed(0))
    pipe: Any = make_pipeline(model)
    plain = pipe([1, 2], latents=noise, num_inference_steps=3, output_type="pt").images
    pipe = make_pipeline(model)
    pipe.enable_model_cpu_offload(device="cpu")
    order = []

    def tell(before, said):
        return lambda *given, **more: (order.append(said), before(*given, **more))[1]

    hooks = pipe._all_hooks
    for hook in hooks:
        name = next(n for n, model in pipe.components.items() if model is hook.model)
        hook.model._hf_hook.pre_forward = tell(hook.model._hf_hook.pre_forward, name)
    assert pipe.vae._hf_hook.prev_module_hook.model is pipe.transformer  # is offloaded when the VAE runs
    images = pipe([1, 2], latents=noise, num_inference_steps=3, output_type="pt").images
    assert torch.equal(torch.as_tensor(images), torch.as_tensor(plain))
    assert order == ["transformer"] * 3 + ["vae"]
    assert all(new is not old for new, old in zip(pipe._all_hooks, hooks, strict=True))  # all offloaded at the end


def test_progress_bar_shows_the_steps_unless_it_is_off(model, capfd):
    pipe = make_pipeline(model)
    pipe([1], num_inference_steps=3, output_type="latent")
    assert "3/3" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe([1], num_inference_steps=3, output_type="latent")
    assert capfd.readouterr().err == ""


def test_callbacks_of_diffusers_change_the_latents(model):
    from diffusers.callbacks import PipelineCallback

    class Halve(PipelineCallback):
        @property
        def tensor_inputs(self) -> list[str]:
            return ["latents"]

        def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
            return {"latents": callback_kwargs["latents"] / 2}

    pipe: Any = make_pipeline(model)
    noise = torch.randn(1, 1, 16, 16)
    at_once: dict[str, Any] = {"cutoff_step_ratio": None, "cutoff_step_index": 0}
    plain, halved = (
        pipe([1], latents=noise, num_inference_steps=1, output_type="latent", callback_on_step_end=callback).images
        for callback in (None, Halve(**at_once))
    )
    assert torch.equal(halved, plain / 2)


def test_pipeline_with_an_autoencoder_and_published_normalisation(tmp_path):
    """An imported model of four channels, decoded by an AutoencoderKL in a local folder."""
    save_autoencoder(tmp_path / "vae")
    torch.save(dense_weights(), tmp_path / "a.pt")
    model = import_official(tmp_path / "a.pt", out=tmp_path / "m", num_heads=4, autoencoder=str(tmp_path / "vae"))
    export(model, tmp_path / "pipe")
    pipe: Any = MPDiTPipeline.from_pretrained(tmp_path / "pipe")
    labels, expected, generators = samples(model)
    images = pipe(labels, guidance_scale=1, generator=generators, num_inference_steps=9).images
    difference = np.abs(np.stack([np.asarray(image) for image in images]).astype(int) - expected)
    assert images[0].size == (128, 128)
    assert expected.std() > 1
    assert difference.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipeline_runs_in_half_precision(model, tmp_path, dtype):
    make_pipeline(model).save_pretrained(tmp_path / "pipe")
    pipes: list[Any] = [MPDiTPipeline.from_pretrained(tmp_path / "pipe", dtype=d) for d in (torch.float32, dtype)]
    noise = torch.randn(2, 1, 16, 16, generator=torch.manual_seed(0))
    a, b = (p([1, 2], latents=noise, num_inference_steps=5, output_type="latent").images for p in pipes)
    assert (a - b).abs().max() < 0.03 * a.abs().max()
