"""Starting values of the weights (the paper's appendix; the official code does the same)."""

from __future__ import annotations

import torch
from torch import nn

from mpdit_core.model.blocks import ModulationLayer
from mpdit_core.model.class_embedding import ClassEmbedding


@torch.no_grad()
def initialize(model: nn.Module, *, spectral_scale: float) -> None:
    """Xavier-uniform linears with zero bias, then the exceptions; the output layer starts at zero.

    Args:
        model: an `MPDiT`.
        spectral_scale: standard deviation of the spectral weights (of an FNO); 1 as published.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    model.get_submodule("time_embedding").initialize(spectral_scale=spectral_scale)  # pyright: ignore[reportCallIssue]
    for module in model.modules():
        if isinstance(module, ClassEmbedding):
            nn.init.normal_(module.table.weight, std=0.02)
        elif isinstance(module, ModulationLayer):
            nn.init.zeros_(module.linear.weight)
    nn.init.zeros_(model.get_submodule("head.linear").weight)  # pyright: ignore[reportArgumentType]
