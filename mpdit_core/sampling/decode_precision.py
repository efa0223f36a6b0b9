"""In what precision samples are decoded: float32, or bfloat16 where that gives the same pixels."""

from __future__ import annotations

from typing import Literal

import torch

from mpdit_core.data.autoencoders import Autoencoder
from mpdit_core.data.latents import unstandardise
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.runtime.seeding import generator

LARGEST_DIFFERENCE = 1.0  # mean absolute difference of pixels from float32's, in 8-bit levels
TRIED_ON = 4  # images


@torch.inference_mode()
def choose_decode_precision(autoencoder: Autoencoder, spec: LatentSpec) -> Literal["float32", "bfloat16"]:
    """bfloat16 if its pixels are within one 8-bit level of float32's on average, else float32; nothing is set.

    Tried on normal noise, which has more detail than latents of images and is the same for every process and block.
    """
    factor, channels = autoencoder.spec.factor, autoencoder.spec.channels
    if factor == 1:  # nothing is computed
        return "float32"
    shape = (TRIED_ON, channels, spec.resolution // factor, spec.resolution // factor)
    latents = unstandardise(torch.randn(shape, generator=generator(0, "decode")), spec.normalisation)
    narrow, wide = (_decoded(autoencoder, latents, precision) for precision in ("bfloat16", "float32"))
    return "bfloat16" if (narrow - wide).abs().mean().item() <= LARGEST_DIFFERENCE else "float32"


def _decoded(autoencoder: Autoencoder, latents: torch.Tensor, precision: str) -> torch.Tensor:
    before = autoencoder.decode_precision
    autoencoder.decode_precision = precision
    try:
        return autoencoder.decode(latents).float()
    finally:
        autoencoder.decode_precision = before
