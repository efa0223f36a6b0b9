"""Starting values of the weights (spec of the paper's appendix; the official code does the same)."""

from __future__ import annotations

import torch
from torch import nn

from mpdit_core.model.blocks import ModulationLayer
from mpdit_core.model.embeddings import ClassEmbedding, SinusoidTimeEmbedding, SpectralConvolution


@torch.no_grad()
def initialize(model: nn.Module, *, spectral_scale: float = 1.0) -> None:
    """Xavier-uniform linears with zero bias, then the exceptions; the output layer starts at zero.

    Args:
        model: an `MPDiT`.
        spectral_scale: factor on the standard normal of the spectral weights; 1 as published.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ClassEmbedding):
            nn.init.normal_(module.table.weight, std=0.02)
        elif isinstance(module, SinusoidTimeEmbedding):
            nn.init.normal_(module.mlp[0].weight, std=0.02)  # pyright: ignore[reportArgumentType]
            nn.init.normal_(module.mlp[2].weight, std=0.02)  # pyright: ignore[reportArgumentType]
        elif isinstance(module, SpectralConvolution):
            nn.init.normal_(module.real, std=spectral_scale)
            nn.init.normal_(module.imaginary, std=spectral_scale)
        elif isinstance(module, ModulationLayer):
            nn.init.zeros_(module.linear.weight)
    nn.init.zeros_(model.get_submodule("head.linear").weight)  # pyright: ignore[reportArgumentType]
