"""Classifier-free guidance (arXiv 2207.12598, equation 6; here w = 1 is off)."""

from __future__ import annotations

from torch import Tensor

from mpdit_core.flow.guidance.rule import Combine, GuidanceRule


class ClassifierFree(GuidanceRule):
    """Classifier-free guidance; with a guide: autoguidance. Two passes per evaluation."""

    def combine(self) -> Combine:
        return extrapolate


def extrapolate(strong: Tensor, weak: Tensor, *, w: float, x_t: Tensor, t: float) -> Tensor:  # noqa: ARG001
    """`weak + w·(strong - weak)`. `x_t` and `t` are not used."""
    return weak + w * (strong - weak)
