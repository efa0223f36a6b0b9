"""The flow-matching loss (paper, section 2): mean squared error of the velocity."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mpdit_core.flow.path import interpolate, target_velocity


def flow_matching_loss(model: nn.Module, *, latents: Tensor, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """One number: squared error averaged over C, H, W, then over the batch; computed in float32.

    Args:
        model: `(x_t, t, labels) -> velocity`.
        latents, noise: [B, C, H, H].
        t: [B]; labels: [B], dropped ones already null.
    """
    velocity = model(interpolate(latents, noise, t), t, labels)
    return F.mse_loss(velocity.float(), target_velocity(latents, noise))
