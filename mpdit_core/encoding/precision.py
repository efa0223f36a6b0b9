"""In what precision the encoder computes: float32 on CPUs; on GPUs something faster where it gives the same latents."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from mpdit_core.api import Dataset
from mpdit_core.data.autoencoders import Autoencoder
from mpdit_core.data.images import prepare
from mpdit_core.data.sources import count_items, read_items
from mpdit_core.errors import UserError
from mpdit_core.runtime.precision import is_fast_in_bfloat16

Precision = Literal["float32", "tf32", "bfloat16"]

TRIED: tuple[Precision, ...] = ("bfloat16", "tf32")  # fastest first
LARGEST_DIFFERENCE = 1e-2  # of the posterior mean from float32's, in raw units
TRIED_ON = 4  # images


def choose_precision(
    wanted: Literal["auto", "float32", "tf32", "bfloat16"],
    autoencoder: Autoencoder,
    source: Dataset,
    *,
    resolution: int,
) -> Precision:
    """`wanted`, or for `auto` the fastest whose means are within 1e-2 of float32's on the first images.

    Raises:
        UserError: a precision is asked for that the device does not have.
    """
    fast = is_fast_in_bfloat16(autoencoder.device)
    if wanted != "auto":
        if wanted != "float32" and not fast:
            raise UserError(
                f"--precision {wanted} on {autoencoder.device}", expected="float32, or a GPU from Ampere on"
            )
        return wanted
    if not fast or autoencoder.spec.factor == 1:
        return "float32"
    images = _first_images(source, resolution)
    if images is None:
        return "float32"
    reference = _means(autoencoder, images, "float32")
    for precision in TRIED:
        if (_means(autoencoder, images, precision) - reference).abs().max().item() <= LARGEST_DIFFERENCE:
            return precision
    return "float32"


def _first_images(source: Dataset, resolution: int) -> torch.Tensor | None:
    images = []
    for _, decode in read_items(source, 0, min(TRIED_ON, count_items(source))):
        try:
            images.append(prepare(decode(), resolution))
        except UserError:  # reported when its turn comes
            continue
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) if images else None


def _means(autoencoder: Autoencoder, images: torch.Tensor, precision: Precision) -> torch.Tensor:
    autoencoder.precision = precision
    try:
        return autoencoder.encode(images)[:, : autoencoder.spec.channels]
    finally:
        autoencoder.precision = "float32"
