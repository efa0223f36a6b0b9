"""Embeddings of the time and of the class.

    t [B] in [0, 1], used as is -> [B, D];    labels [B] -> class tokens [B, M, D] or one vector [B, D]

To add a time embedding: a module `t [B] -> [B, D]` here, and its name in `TIME_EMBEDDINGS` and `ModelConfig`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SinusoidTimeEmbedding(nn.Module):
    """256 cosines and sines of the raw t, then an MLP (DiT, section 3.2)."""

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


class SpectralConvolution(nn.Module):
    """Multiplies the first `MODES` Fourier modes along a grid by a complex matrix. [B, channels, grid] both ways."""

    MODES = 16

    def __init__(self, channels: int):
        super().__init__()
        shape = (channels, channels, self.MODES)  # in, out, mode
        self.real = nn.Parameter(torch.randn(shape))
        self.imaginary = nn.Parameter(torch.randn(shape))

    def forward(self, signal: Tensor) -> Tensor:
        grid = signal.shape[-1]
        spectrum = torch.fft.rfft(signal)[..., : self.MODES]
        weight = torch.complex(self.real, self.imaginary)
        # One [in, out] product a mode, as a batched matrix product: [mode, B, in] @ [mode, in, out]
        low = torch.bmm(spectrum.permute(2, 0, 1), weight.permute(2, 0, 1)).permute(1, 2, 0)
        return torch.fft.irfft(low, n=grid)  # rfft's missing modes are zeros


class FNOTimeEmbedding(nn.Module):
    """A Fourier neural operator on the function `grid -> grid + t`, averaged over the grid (paper, section 3.4).

    Always float32, whatever autocast says: in bfloat16 its error is larger than the difference between adjacent
    sampling steps.
    """

    CHANNELS = 32
    GRID = 32
    LAYERS = 3

    def __init__(self, width: int):
        super().__init__()
        self.lift = nn.Linear(1, self.CHANNELS)
        self.spectral = nn.ModuleList(SpectralConvolution(self.CHANNELS) for _ in range(self.LAYERS))
        self.pointwise = nn.ModuleList(nn.Linear(self.CHANNELS, self.CHANNELS) for _ in range(self.LAYERS))
        self.project = nn.Linear(self.CHANNELS, width)

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            grid = torch.linspace(-1, 1, self.GRID, device=t.device) + t.float()[:, None]  # [B, grid]
            signal = self.lift(grid[..., None])  # [B, grid, channels]
            last = self.LAYERS - 1
            for i, (spectral, pointwise) in enumerate(zip(self.spectral, self.pointwise, strict=True)):
                signal = spectral(signal.transpose(1, 2)).transpose(1, 2) + pointwise(signal)
                if i != last:
                    signal = F.gelu(signal)
            return self.project(signal.mean(dim=1))


TIME_EMBEDDINGS: dict[str, type[nn.Module]] = {"fno": FNOTimeEmbedding, "sinusoid": SinusoidTimeEmbedding}


class ClassEmbedding(nn.Module):
    """One table row a class and one for the null label; a row is M tokens side by side. labels [B] -> [B, M, D]."""

    def __init__(self, *, num_classes: int, class_tokens: int, width: int):
        super().__init__()
        self.width = width
        self.table = nn.Embedding(num_classes + 1, class_tokens * width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.table(labels).unflatten(1, (-1, self.width))  # no len(): it would fix an exported batch
