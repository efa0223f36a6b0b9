"""The straight path between data and noise.

t is 1 at noise and 0 at data: `x_t = (1 - t)·latents + t·noise`, velocity `noise - latents` (paper, section 2).

Shapes: B images, C channels, h × w latents.
"""

from __future__ import annotations

import torch
from torch import Tensor


def interpolate(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """`x_t [B, C, h, w]` for latents and noise of that shape and t [B]."""
    return torch.lerp(latents, noise, t.view(-1, 1, 1, 1))


def target_velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """The velocity of the path, [B, C, h, w]; it is the same at every t."""
    return noise - latents


def predicted_latents(x_t: Tensor, velocity: Tensor, t: float) -> Tensor:
    """The latents [B, C, h, w] that a velocity at `x_t` and time `t` points to: `x_t - t·velocity`."""
    return x_t - t * velocity
