"""The times of training: the densities that t is drawn from, and the shift towards noise that larger latents need.

To add a density: a function `(uniforms, time) -> t` below, its row in `DENSITIES`, its name in `TimeConfig.density`.
It maps uniform numbers in (0, 1) to times and draws nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mpdit_core.config import TimeConfig

UNSHIFTED_VALUES = 4096  # C·h·w of a 256-pixel latent of the Stable Diffusion autoencoder, for which shift "auto" is 1


def uniform(uniforms: Tensor, time: TimeConfig) -> Tensor:  # noqa: ARG001
    """All times are equally likely (flow matching, arXiv 2210.02747)."""
    return uniforms


def logit_normal(uniforms: Tensor, time: TimeConfig) -> Tensor:
    """`sigmoid(mean + std·normal)` (arXiv 2403.03206, equation 19; mean 0 and std 1 in the MPDiT paper)."""
    return torch.sigmoid(time.mean + time.std * torch.special.ndtri(uniforms))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def mode(uniforms: Tensor, time: TimeConfig) -> Tensor:
    """Times in the middle are more likely; at the ends if the scale is below 0 (arXiv 2403.03206, equation 20).

    `1 - u - s·(cos²(πu/2) - 1 + u)` for scale s; written with the sine, which keeps small u exact.
    """
    return 1 - uniforms + time.scale * (torch.sin(math.pi / 2 * uniforms).square() - uniforms)


DENSITIES: dict[str, Callable[[Tensor, TimeConfig], Tensor]] = {
    "uniform": uniform,
    "logit-normal": logit_normal,
    "mode": mode,
}


def draw_times(time: TimeConfig, uniforms: Tensor, *, latent_values: int) -> Tensor:
    """Times in [0, 1] from uniform numbers in (0, 1), in the same shape.

    The shift "auto" is `sqrt(latent_values / 4096)`. It grows with the resolution as in Stable Diffusion 3 (arXiv
    2403.03206, equation 23), and with the number of channels as in RAE (arXiv 2510.11690, section on noise schedules).

    Args:
        latent_values: C·h·w, number of values of one image's latents.
    """
    t = DENSITIES[time.density](uniforms, time)
    a = math.sqrt(latent_values / UNSHIFTED_VALUES) if time.shift == "auto" else time.shift
    return t if a is None or a == 1 else a * t / (1 + (a - 1) * t)
