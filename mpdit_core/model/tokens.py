"""From planes to tokens and back: patches, and the step from a coarse grid to a finer one.

x_t    [B, C, H, H]     latents
tokens [B, N, D]        N = (H / p)²; row-major over the grid
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpdit_core.config import ModelConfig
from mpdit_core.model.blocks import normalise


class PatchEmbedding(nn.Module):
    """Cuts `x_t [B, C, H, H]` into p × p patches and maps each to D features: `[B, N, D]`.

    A linear layer on patches read as (C, p, p), which equals a convolution of kernel = stride = p.
    """

    def __init__(self, *, patch_size: int, channels: int, width: int):
        super().__init__()
        self.patch_size = patch_size
        self.linear = nn.Linear(channels * patch_size**2, width)

    def forward(self, x_t: Tensor) -> Tensor:
        B, C, H, W = x_t.shape
        p = self.patch_size
        patches = x_t.view(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)  # [B, n, n, C, p, p]
        return self.linear(patches.reshape(B, -1, C * p * p))


def unpatchify(patches: Tensor, *, patch_size: int, channels: int) -> Tensor:
    """`[B, N, p·p·C]`, each vector read as (p, p, C), to `[B, C, H, H]`."""
    B, N, _ = patches.shape
    n, p, C = int(N**0.5), patch_size, channels
    grid = patches.view(B, n, n, p, p, C).permute(0, 5, 1, 3, 2, 4)  # [B, C, n, p, n, p]
    return grid.reshape(B, C, n * p, n * p)


class Upsample(nn.Module):
    """Each coarse token becomes an r × r group of finer ones (paper, section 3.2); class tokens pass along.

    class_tokens [B, M, D], tokens [B, N, D] -> class_tokens [B, M, D], tokens [B, N·r², D]
    """

    def __init__(self, config: ModelConfig, *, ratio: int):
        super().__init__()
        width, self.ratio, self.norm = config.width, ratio, config.norm
        self.expand = nn.Linear(width, width * ratio**2)
        self.refine = nn.Linear(width, width)

    def forward(self, class_tokens: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        B, N, D = tokens.shape
        M, n, r = class_tokens.shape[1], int(N**0.5), self.ratio
        groups = self.expand(tokens).view(B, n, n, D, r, r)  # the linear's output reads as (D, r, r)
        tokens = F.gelu(groups.permute(0, 1, 4, 2, 5, 3).reshape(B, N * r * r, D), approximate="tanh")
        both = torch.cat([class_tokens, tokens], dim=1)
        both = self.refine(normalise(both, self.norm))
        return both[:, :M], both[:, M:]
