"""The type that the encoder computes in: float32, or a faster one that gives nearly the same latents."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from mpdit_core.api import Dataset
from mpdit_core.config import ComputeType
from mpdit_core.data.autoencoders import LoadedAutoencoder, read_stored
from mpdit_core.data.images import Mode, prepare
from mpdit_core.data.sources import count_items, read_items
from mpdit_core.errors import UserError
from mpdit_core.runtime.precision import MIN_PARAMETERS, TRIED_AT, TRIED_ON, fastest_that_agrees, require
from mpdit_core.size import Size

MAX_DIFFERENCE = 1e-2  # between the posterior mean and float32's, in raw units


def choose_precision(
    wanted: Literal["auto", "float32", "tf32", "bfloat16"],
    autoencoder: LoadedAutoencoder,
    source: Dataset,
    *,
    resolution: Size,
) -> ComputeType:
    """`wanted`, or for `auto` the fastest type whose means are within 1e-2 of float32's on the first images.

    Raises:
        UserError: the device does not have the precision (`no-such-precision`).
    """
    device = autoencoder.encode_device
    if wanted != "auto":
        return require(wanted, device)
    if autoencoder.parameters < MIN_PARAMETERS:
        return "float32"
    images = _first_images(source, autoencoder.spec.trial_size(resolution, TRIED_AT), autoencoder.mode)
    if images is None:
        return "float32"

    def means(name: ComputeType) -> torch.Tensor:
        autoencoder.precision = name
        return read_stored(autoencoder.encode(images), autoencoder.spec.stores)[0]

    return fastest_that_agrees(
        ("bfloat16", "tf32") if device.type == "cuda" else ("bfloat16",),
        means,
        difference=lambda a, b: (a - b).abs().max().item(),
        limit=MAX_DIFFERENCE,
    )


def _first_images(source: Dataset, resolution: Size, mode: Mode) -> torch.Tensor | None:
    """The first images that can be read, uint8 [n, K, H, W]."""
    images = []
    for _, decode in read_items(source, 0, min(TRIED_ON, count_items(source))):
        try:
            images.append(prepare(decode(), resolution, mode))
        except UserError:  # reported when it is encoded
            continue
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) if images else None
