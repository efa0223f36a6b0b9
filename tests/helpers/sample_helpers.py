"""A tiny model folder to sample from: random weights, but a velocity that depends on x, t and the label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mpdit_core.data.manifest import AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import ModelFolder, open_model, save_model
from mpdit_core.presets import load_preset

NAMES = ("zero", "one", "two", "three", "four", "goldfish, Carassius auratus", "crane", "crane", "eight", "nine")


def spec() -> LatentSpec:
    return LatentSpec(
        resolution=16,
        autoencoder=AutoencoderSpec(id="pixels-gray", factor=1, channels=1),
        normalisation=Normalisation(name="measured", mean=(-0.5,), std=(0.6,)),
        class_names=NAMES,
        source="test",
        count=10,
    )


def write_model(folder: Path, *, seed: int = 0, latents: LatentSpec | bool = True, **changes: Any) -> ModelFolder:
    """The preset `tiny`, with `changes` of its network's configuration."""
    config = load_preset("tiny")
    config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
    torch.manual_seed(seed)
    model = MPDiT(config.model)
    with torch.no_grad():
        for parameter in model.parameters():  # the published start has a zero output layer: nothing would happen
            if float(parameter.abs().sum()) == 0:
                parameter.normal_(std=0.1)
    described = latents if isinstance(latents, LatentSpec) else spec() if latents else None
    save_model(folder, dict(model.named_parameters()), config=config, latents=described, step=7)
    return open_model(folder)
