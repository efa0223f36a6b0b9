"""The data type that samples are decoded in: float32, or bfloat16 where that gives nearly the same pixels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mpdit_core.config import ComputeType, Precision
from mpdit_core.data.autoencoders import LoadedAutoencoder
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.data.standardising import unstandardise
from mpdit_core.runtime import seeding
from mpdit_core.runtime.precision import MIN_GAIN, MIN_PARAMETERS, TRIED_AT, TRIED_ON, fastest_that_agrees

MAX_DIFFERENCE = 1.0  # mean absolute difference between pixels and float32's, in 8-bit levels


@torch.inference_mode()
def choose_decode_precision(wanted: Precision, autoencoder: LoadedAutoencoder, spec: LatentSpec) -> ComputeType:
    """bfloat16 if its pixels differ from float32's by at most one 8-bit level on average, else float32.

    Both decode the same normal noise, which has more detail than latents of images. `autoencoder` stays unchanged.

    Args:
        wanted: precision of the network; `auto` takes bfloat16 only where it is faster, `float32` never.
    """
    factor, channels = autoencoder.spec.factor, autoencoder.spec.channels
    too_small = wanted == "auto" and autoencoder.parameters < MIN_PARAMETERS
    if factor == 1 or wanted == "float32" or too_small:  # with a factor of 1 there is no network
        return "float32"
    size = autoencoder.spec.trial_size(spec.resolution, TRIED_AT) // factor
    noise = torch.randn((TRIED_ON, channels, *size), generator=seeding.generator(0, "decode"))
    latents = unstandardise(noise, spec.normalisation)
    tried = copy.copy(autoencoder)

    def decoded(precision: ComputeType) -> Tensor:
        tried.decode_precision = precision
        return tried.decode(latents).float()

    return fastest_that_agrees(
        ["bfloat16"],
        decoded,
        difference=lambda a, b: (a - b).abs().mean().item(),
        limit=MAX_DIFFERENCE,
        min_gain=MIN_GAIN if wanted == "auto" else 0.0,
    )
