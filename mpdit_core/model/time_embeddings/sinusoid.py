"""256 cosines and sines of the raw t, then an MLP (DiT, arXiv 2212.09748, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """t [B] -> cosines and sines [B, 256] -> [B, D]."""

    FEATURES = 256
    MAX_PERIOD = 10_000

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.FEATURES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = t.float()[:, None] * torch.exp(-math.log(self.MAX_PERIOD) * exponents)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))

    def initialize(self, *, spectral_scale: float) -> None:  # noqa: ARG002 - there are no spectral weights
        for linear in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(linear.weight, std=0.02)  # pyright: ignore[reportArgumentType]
