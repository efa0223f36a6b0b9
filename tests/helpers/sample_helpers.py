"""A tiny model to sample from, with random weights and a velocity that depends on x, t and the label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mpdit_core.data.autoencoders import as_rgb
from mpdit_core.data.manifest import AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.errors import UserError
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import ModelFolder, open_model, save_model
from mpdit_core.presets import load_preset
from mpdit_core.runtime.distributed import World
from mpdit_core.sampling import Generator, SampleOptions, SamplingOptions, sample
from mpdit_core.sampling.options import SampleResult, ViewResult
from mpdit_core.size import Size

NAMES = ("zero", "one", "two", "three", "four", "goldfish, Carassius auratus", "crane", "crane", "eight", "nine")


def spec() -> LatentSpec:
    return LatentSpec(
        resolution=Size.square(16),
        autoencoder=AutoencoderSpec(id="pixels-gray", factor=1, channels=1),
        normalisation=Normalisation(name="measured", mean=(-0.5,), std=(0.6,)),
        class_names=NAMES,
        source="test",
        count=10,
    )


@torch.no_grad()
def fill_zero_parameters(model: MPDiT, *, std: float) -> None:
    """Random values where the published initialisation has zeros: in the gates of the blocks, and in the output."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=std)


def write_model(folder: Path, *, seed: int = 0, latents: LatentSpec | bool = True, **changes: Any) -> ModelFolder:
    """The preset `tiny`, with `changes` of its network's configuration."""
    config = load_preset("tiny")
    config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
    torch.manual_seed(seed)
    model = MPDiT(config.model)
    fill_zero_parameters(model, std=0.1)
    described = latents if isinstance(latents, LatentSpec) else spec() if latents else None
    save_model(folder, dict(model.named_parameters()), config=config, latents=described, step=7)
    return open_model(folder)


QUICK: dict[str, Any] = {"batch_size": 4, "num_steps": 4, "guidance_scale": 2.0}
"""Options of sampling for tests: 10 samples are three blocks."""


def make_generator(model: ModelFolder, *, num_samples: int = 10, decode: bool = False, **changes: Any) -> Generator:
    """A generator on the CPU with `QUICK` options and these changes."""
    options = SamplingOptions(**QUICK | changes)
    return Generator(model, options, device="cpu", num_samples=num_samples, decode=decode)


def latents_of(model: ModelFolder, *, world: World | None = None, **changes: Any) -> dict[int, Tensor]:
    """Latents by number of image."""
    generator = make_generator(model, **changes)
    batches = generator.batches(generator.blocks(world))
    return {i: x for batch in batches for i, x in zip(batch.indices, batch.latents, strict=True)}


def images_of(model: ModelFolder, **changes: Any) -> Tensor:
    """All images as RGB, [n, 3, H, W] uint8."""
    return torch.cat([as_rgb(batch.images) for batch in make_generator(model, decode=True, **changes).batches()])


def code_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The code of the `UserError` that the call raises."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return caught.value.code


def sample_options(model: ModelFolder, **changes: Any) -> SampleOptions:
    return SampleOptions(**QUICK | {"model": str(model.path), "num_samples": 10, "device": "cpu"} | changes)


def run_sample(model: ModelFolder, **changes: Any) -> SampleResult:
    result = sample(sample_options(model, **changes))
    assert isinstance(result, SampleResult)
    return result


def run_view(model: ModelFolder, **changes: Any) -> ViewResult:
    """A view of two samples in three steps, unguided."""
    defaults = {"num_samples": 2, "num_steps": 3, "guidance_scale": 1.0}
    result = sample(sample_options(model, **defaults | changes))
    assert isinstance(result, ViewResult)
    return result
