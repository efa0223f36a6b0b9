"""From raw latents, which the autoencoder decodes, to standardised ones, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpdit_core.data.manifest import Normalisation


def standardise(raw_latents: Tensor, normalisation: Normalisation) -> Tensor:
    """`(raw_latents - mean) / std` per channel, [n, C, h, w]."""
    return (raw_latents - _column(normalisation.mean, raw_latents)) / _column(normalisation.std, raw_latents)


def unstandardise(latents: Tensor, normalisation: Normalisation) -> Tensor:
    """The inverse of `standardise`: what the autoencoder decodes, [n, C, h, w]."""
    return latents * _column(normalisation.std, latents) + _column(normalisation.mean, latents)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
