"""Training objectives. Flow matching (paper, section 2): the mean squared error of the velocity.

To add one: a function as `flow_matching_loss` below.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mpdit_core.flow.path import interpolate, target_velocity


def flow_matching_loss(model: nn.Module, *, latents: Tensor, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The squared error averaged over C, h, w, then over the batch, as one number in float32.

    Args:
        model: `(x_t, t, labels) -> velocity`.
        latents, noise: [B, C, h, w].
        t: [B].
        labels: [B]; those that were dropped are the null label already.
    """
    velocity = model(interpolate(latents, noise, t), t, labels)
    return F.mse_loss(velocity.float(), target_velocity(latents, noise))
