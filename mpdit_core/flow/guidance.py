"""Guidance: how the velocity a sampler sees is put together from evaluations of the network, and counting those.

    velocity = weak + w(t)·(strong - weak)

Classifier-free guidance (arXiv 2207.12598): strong is the network with the label, weak the same with the null label;
both in one batched pass. Autoguidance (arXiv 2406.02507): weak is a second, worse model with the label. w = 1 is off.
Interval (arXiv 2404.07724): outside it w = 1, and the weak half is not computed.

To add a schedule of scales: a function of t in `SCHEDULES` whose mean over [0, 1] is 1, and its name in
`GuidanceSchedule` of config.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpdit_core.config import GuidanceSchedule
from mpdit_core.errors import UserError
from mpdit_core.runtime.precision import autocast

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`network(x_t [B, C, h, w], t [1] or [B], labels [B]) -> velocity [B, C, h, w]`."""

# w(t) = 1 + (guidance_scale - 1)·schedule(t): rising towards the data (arXiv 2404.13040, section 4)
SCHEDULES: dict[GuidanceSchedule, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda t: 2 * (1 - t),
    "cosine": lambda t: 1 + math.cos(math.pi * t),
}


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly, and when. `interval`: (lo, hi) of t, both ends inclusive."""

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    schedule: GuidanceSchedule = "constant"

    def __post_init__(self) -> None:
        lo, hi = self.interval
        if not 0 <= lo <= hi <= 1:
            raise UserError(
                f"guidance interval {lo:g},{hi:g}",
                code="invalid-value",
                expected="0 <= LO <= HI <= 1, times t where 1 is noise and 0 data",
                remedy="e.g. --guidance-interval 0.1,0.8",
            )
        if not math.isfinite(self.scale) or self.scale < 0:
            raise UserError(
                f"guidance scale {self.scale}", code="invalid-value", expected="a number of at least 0; 1 is off"
            )

    @property
    def is_off(self) -> bool:
        return self.scale == 1

    def scale_at(self, t: float) -> float:
        """w(t); 1 outside the interval."""
        lo, hi = self.interval
        slack = 1e-9  # a grid may hit the ends up to rounding
        if self.is_off or not lo - slack <= t <= hi + slack:
            return 1.0
        return 1 + (self.scale - 1) * SCHEDULES[self.schedule](t)


class GuidedVelocity:
    """The velocity function of one batch: network, labels and guidance bound. Counts what it computes.

    Args:
        network: the model.
        labels: [B] int64 on the network's device.
        null_label: what the network takes for "no class".
        guidance: off by default.
        guide: a second, weaker network for autoguidance; then the null label is not used.
        dtype: the type to compute in, by autocast. The result has the type of x_t either way.
    """

    def __init__(
        self,
        network: Network,
        labels: Tensor,
        *,
        null_label: int,
        guidance: Guidance | None = None,
        guide: Network | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.network, self.guide, self.guidance = network, guide, guidance or Guidance()
        self.labels = labels
        self.both_labels = torch.cat([labels, torch.full_like(labels, null_label)])
        self.dtype = dtype
        self.nfe = 0
        """Evaluations the sampler asked for."""
        self.passes = 0
        """Passes of one image through a network; a guided evaluation takes two."""

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        """The guided velocity [B, C, h, w] at `x_t [B, C, h, w]` and time `t`, in the type of `x_t`."""
        w = self.guidance.scale_at(t)
        self.nfe += 1
        self.passes += 1 if w == 1 else 2
        with autocast(x_t.device, self.dtype):
            velocity = self._guided(x_t, x_t.new_full((1,), t), w)  # t is filled on the device: nothing waits for it
        return velocity.to(x_t.dtype)

    def _guided(self, x_t: Tensor, t: Tensor, w: float) -> Tensor:
        if w == 1:
            return _evaluate(self.network, x_t, t, self.labels)
        if self.guide is not None:
            strong, weak = (_evaluate(network, x_t, t, self.labels) for network in (self.network, self.guide))
        else:
            strong, weak = _evaluate(self.network, torch.cat([x_t, x_t]), t, self.both_labels).chunk(2)
        return weak + w * (strong - weak)

    @property
    def saved(self) -> int:
        """Passes that the interval spared, against guidance at every evaluation."""
        return 0 if self.guidance.is_off else 2 * self.nfe - self.passes


def _evaluate(network: Network, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The velocity in float32, in memory of its own: that of a CUDA graph is overwritten by the next evaluation."""
    return network(x_t, t, labels).to(torch.float32, copy=True)
