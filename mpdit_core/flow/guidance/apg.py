"""Adaptive projected guidance, APG (arXiv 2410.02416, algorithm 1): high scales without oversaturation.

The paper updates the data predicted with the label, `data = x_t - t·strong`. Here the update is written in velocities:
a difference d of velocities is a difference -t·d of the data.

    d = strong - weak + momentum·(d of the previous evaluation)·(its t) / t
    d = d·min(1, norm_threshold / |t·d|)
    d = (d orthogonal to data) + eta·(d parallel to data)
    velocity = strong + (w - 1)·d

With eta = 1, norm_threshold = 0 and momentum = 0 this is classifier-free guidance.
"""

from __future__ import annotations

from torch import Tensor

from mpdit_core.flow.guidance.rule import Combine, GuidanceRule, dot, projection_coefficient
from mpdit_core.flow.path import predicted_latents
from mpdit_core.settings import setting


class AdaptiveProjected(GuidanceRule):
    """APG: the update of the predicted data is bounded and mostly orthogonal to them. Two passes per evaluation."""

    eta: float = setting(0.0, "factor on the component of the update parallel to the predicted data; 1: unchanged")
    norm_threshold: float = setting(
        5.0, "largest norm of the update, over all values of an image's latents; 0: no bound", ge=0
    )
    momentum: float = setting(
        -0.5, "weight of earlier updates (momentum), for samplers with one evaluation per step; 0: none", gt=-1, lt=1
    )

    def combine(self) -> Combine:
        previous: Tensor | None = None  # t·d of the previous evaluation, [B, C, h, w]

        def combine(strong: Tensor, weak: Tensor, *, w: float, x_t: Tensor, t: float) -> Tensor:
            nonlocal previous
            d = strong - weak
            if previous is not None and t > 0:
                d = d + self.momentum / t * previous
            previous = t * d
            if self.norm_threshold > 0:
                d = d * (self.norm_threshold / dot(previous, previous).sqrt()).clamp(max=1)
            data = predicted_latents(x_t, strong, t)
            parallel = projection_coefficient(d, onto=data) * data
            d = (d - parallel) + self.eta * parallel
            return strong + (w - 1) * d

        return combine
