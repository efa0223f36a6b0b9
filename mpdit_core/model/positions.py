"""Where a token is on the image: a table added to the tokens, or rotations of queries and keys (RoPE), or both.

Rotations depend on the centre of a token in latent pixels. So a coarse token lies in the middle of its fine tokens, and
equal distances are equal angles at every patch size and resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpdit_core.config import ModelConfig
from mpdit_core.size import Size

ROTATION_BASE = 100
"""Ratio of the shortest and the longest wavelength. RoPE-ViT (arXiv 2403.13298), section 3.2: an image has few tokens
along a side, so 100 replaces the 10,000 of language models."""


def position_table(width: int, grid: Size) -> Tensor:
    """Fixed 2-D sine-cosine positions `[N, D]` (ViT; MAE's table): half of D for the column, half for the row."""
    frequencies = 10_000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(max(grid), dtype=torch.float64)[:, None] * frequencies  # [n, D/4]
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [n, D/2]
    return _on_grid(line, grid).float()


def rotation_table(config: ModelConfig, patch_size: int) -> Tensor:
    """Cosines and sines `[2, M+N, 1, d/2]` for heads of d features.

    Half of the angles are for the column, half for the row. Class tokens come first; their angles are 0.
    """
    features = config.width // config.num_heads // 4
    frequencies = ROTATION_BASE ** (-torch.arange(features, dtype=torch.float64) / features)
    grid = config.input_size // patch_size
    centres = (torch.arange(max(grid), dtype=torch.float64) + 0.5) * patch_size
    angles = _on_grid(centres[:, None] * frequencies, grid)  # [N, d/2]
    angles = torch.cat([angles.new_zeros(config.class_tokens, 2 * features), angles])
    return torch.stack([angles.cos(), angles.sin()])[:, :, None].float()


def rotate(heads: Tensor, rotations: Tensor) -> Tensor:
    """Queries or keys `[B, L, heads, d]`, the features i and i + d/2 of each rotated as a pair."""
    cos, sin = rotations  # each [L, 1, d/2]
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).type_as(heads)


def _on_grid(line: Tensor, grid: Size) -> Tensor:
    """Features `[n, F]` of each coordinate → `[N, 2F]` of each position, row by row: those of its column, then row."""
    columns = line[None, : grid.width].expand(grid.height, -1, -1)
    rows = line[: grid.height, None].expand(-1, grid.width, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)
