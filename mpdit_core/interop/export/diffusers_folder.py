"""A model as a pipeline folder of diffusers: transformer, VAE, scheduler."""

from __future__ import annotations

from typing import Any

import torch

from mpdit_core.data.autoencoders import DiffusersAutoencoder, load_autoencoder
from mpdit_core.errors import UserError
from mpdit_core.interop.pipeline import MPDiTPipeline, MPDiTTransformer, PixelVAE
from mpdit_core.models.model_folder import ModelFolder


def make_pipeline(model: ModelFolder, *, half: bool = False) -> MPDiTPipeline:
    """The model with its VAE (downloaded if it is not local) and an Euler scheduler.

    Raises:
        UserError: the model does not describe its latents (`no-autoencoder`), or its autoencoder cannot be loaded, or
            is a plugin other than `pixels` (`unknown-autoencoder`).
    """
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    latents = model.require_latents()
    autoencoder = load_autoencoder(latents.autoencoder)
    vae: Any = PixelVAE(channels=latents.autoencoder.channels)
    if isinstance(autoencoder.plugin, DiffusersAutoencoder):
        vae = autoencoder.plugin.network
    elif autoencoder.spec.stores != "uint8":
        raise UserError(
            f"the autoencoder {latents.autoencoder.id} is a plugin, which diffusers cannot load",
            code="unknown-autoencoder",
            expected="pixels, or an autoencoder of diffusers",
            remedy="--format mpdit",
        )
    normalisation = latents.normalisation
    transformer = MPDiTTransformer.of(model.load(), mean=normalisation.mean, std=normalisation.std)
    names = dict(enumerate(latents.class_names))
    pipeline = MPDiTPipeline(transformer, vae, FlowMatchEulerDiscreteScheduler(shift=1.0), id2label=names)
    return pipeline.to(torch.float16) if half else pipeline
