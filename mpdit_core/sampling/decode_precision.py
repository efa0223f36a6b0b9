"""The type that samples are decoded in: float32, or bfloat16 where that gives the same pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from mpdit_core.data.autoencoders import LoadedAutoencoder
from mpdit_core.data.latents import unstandardise
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.runtime import seeding
from mpdit_core.runtime.precision import Name, fastest_that_agrees

LARGEST_DIFFERENCE = 1.0  # mean absolute difference of pixels from float32's, in 8-bit levels
TRIED_ON = 4  # images


@torch.inference_mode()
def choose_decode_precision(autoencoder: LoadedAutoencoder, spec: LatentSpec) -> Name:
    """bfloat16 if its pixels are within one 8-bit level of float32's on average, else float32; nothing is set.

    It is tried on normal noise, which has more detail than latents of images and is the same for every process.
    """
    factor, channels = autoencoder.spec.factor, autoencoder.spec.channels
    if factor == 1:  # nothing is computed
        return "float32"
    shape = (TRIED_ON, channels, *spec.latent_size)
    latents = unstandardise(torch.randn(shape, generator=seeding.generator(0, "decode")), spec.normalisation)
    before = autoencoder.decode_precision

    def decoded(precision: Name) -> Tensor:
        autoencoder.decode_precision = precision
        return autoencoder.decode(latents).float()

    def difference(a: Tensor, b: Tensor) -> float:
        return (a - b).abs().mean().item()

    try:
        return fastest_that_agrees(["bfloat16"], decoded, difference=difference, limit=LARGEST_DIFFERENCE)
    finally:
        autoencoder.decode_precision = before
