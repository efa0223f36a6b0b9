"""Conversions of pixels: to numbers on [-1, 1] and back, and from any mode to RGB."""

from __future__ import annotations

import torch
from torch import Tensor


def to_range(images: Tensor) -> Tensor:
    """uint8 pixels as float32 on [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_pixels(values: Tensor) -> Tensor:
    """The nearest uint8 pixels to `values` on [-1, 1], as ADM's evaluation rounds: clamp(127.5·x + 128), truncated."""
    return (values.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def as_rgb(images: Tensor) -> Tensor:
    """uint8 images [n, 1, 3 or 4, H, W] as RGB [n, 3, H, W]: grey in all three channels, transparency laid on white."""
    if images.shape[1] != 4:
        return images.expand(-1, 3, -1, -1)
    colours, alpha = images[:, :3].int(), images[:, 3:].int()
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)
