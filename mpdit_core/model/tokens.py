"""From latents and labels to tokens, and back: patches, class tokens, and the step from a coarse grid to a finer one.

x_t          [B, C, h, w]   latents
tokens       [B, N, D]      N = h/p · w/p; row-major over the grid
class_tokens [B, M, D]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpdit_core.config import ModelConfig
from mpdit_core.model.blocks import normalise
from mpdit_core.size import Size


class PatchEmbedding(nn.Module):
    """Cuts `x_t [B, C, h, w]` into p × p patches and maps each to D features: `[B, N, D]`.

    A linear layer on patches read as (C, p, p), which equals a convolution with kernel and stride p.
    """

    def __init__(self, config: ModelConfig, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.linear = nn.Linear(config.channels * patch_size**2, config.width)

    def forward(self, x_t: Tensor) -> Tensor:
        B, C, h, w = x_t.shape
        p = self.patch_size
        patches = x_t.view(B, C, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)  # [B, h/p, w/p, C, p, p]
        return self.linear(patches.reshape(B, -1, C * p * p))


class ClassEmbedding(nn.Module):
    """labels [B] -> class tokens `[B, M, D]`; of a model without class tokens one vector (M = 1), added to `cond`.

    A table with one row per class and one for the null label; a row is M tokens side by side.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.width = config.width
        self.table = nn.Embedding(config.num_classes + 1, max(config.class_tokens, 1) * config.width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.table(labels).unflatten(1, (-1, self.width))  # no len(): it would fix the batch size of an export


def unpatchify(patches: Tensor, *, size: Size, patch_size: int) -> Tensor:
    """`[B, N, p·p·C]`, each vector read as (p, p, C), to `[B, C, h, w]` of `size`."""
    B, _, features = patches.shape
    p, C = patch_size, features // patch_size**2
    grid = patches.view(B, *size // p, p, p, C).permute(0, 5, 1, 3, 2, 4)  # [B, C, h/p, p, w/p, p]
    return grid.reshape(B, C, *size)


class Upsample(nn.Module):
    """Each coarse token becomes r × r finer ones (paper, section 3.2); class tokens pass through the last layer only.

    class_tokens [B, M, D], tokens [B, N, D] -> class_tokens [B, M, D], tokens [B, N·r², D]
    """

    def __init__(self, config: ModelConfig, coarse_patch: int, fine_patch: int):
        super().__init__()
        width, self.norm = config.width, config.norm
        self.grid, self.ratio = config.input_size // coarse_patch, coarse_patch // fine_patch
        self.expand = nn.Linear(width, width * self.ratio**2)
        self.refine = nn.Linear(width, width)

    def forward(self, class_tokens: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        B, N, D = tokens.shape
        M, r = class_tokens.shape[1], self.ratio
        groups = self.expand(tokens).view(B, *self.grid, D, r, r)  # the linear's output reads as (D, r, r)
        tokens = F.gelu(groups.permute(0, 1, 4, 2, 5, 3).reshape(B, N * r * r, D), approximate="tanh")
        both = torch.cat([class_tokens, tokens], dim=1)
        both = self.refine(normalise(both, self.norm))
        return both[:, :M], both[:, M:]
