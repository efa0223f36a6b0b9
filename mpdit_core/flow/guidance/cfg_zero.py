"""CFG-Zero* (arXiv 2503.18886): classifier-free guidance for flows that are not fitted perfectly.

    velocity = s·weak + w·(strong - s·weak),   s = <strong, weak> / |weak|² per image;   0 in the first steps

The velocity is 0 at times t > 1 - zero_init, for every sampler. On a uniform grid of n steps these are the first
zero_init·n steps, rounded up.
"""

from __future__ import annotations

from torch import Tensor

from mpdit_core.flow.guidance.cfg import extrapolate
from mpdit_core.flow.guidance.rule import Combine, GuidanceRule, projection_coefficient
from mpdit_core.settings import setting


class CFGZero(GuidanceRule):
    """CFG-Zero*: the weak velocity optimally scaled, and no motion in the first steps. Two passes per evaluation."""

    optimised_scale: bool = setting(
        True, "whether the weak velocity is scaled to fit the strong one best (least squares)"
    )
    zero_init: float = setting(0.04, "fraction of the time, from t = 1, in which the velocity is 0", ge=0, lt=1)

    def combine(self) -> Combine:
        return extrapolate_from_scaled if self.optimised_scale else extrapolate

    def is_zero_at(self, t: float) -> bool:
        return t > 1 - self.zero_init + 1e-9  # times on a grid are rounded


def extrapolate_from_scaled(strong: Tensor, weak: Tensor, *, w: float, x_t: Tensor, t: float) -> Tensor:
    """`extrapolate` from the multiple of `weak` that is closest to `strong`."""
    return extrapolate(strong, projection_coefficient(strong, onto=weak) * weak, w=w, x_t=x_t, t=t)
