"""The velocity function that a sampler integrates: network, labels and guidance in one. It counts its cost."""

from __future__ import annotations

import torch
from torch import Tensor

from mpdit_core.flow.guidance.rule import Network, pair_with_guide
from mpdit_core.flow.guidance.strength import Guidance
from mpdit_core.runtime.precision import autocast


class GuidedVelocity:
    """The velocity function of one batch, for one integration from t = 1 to 0. If w(t) = 1, only strong is computed.

    Args:
        network: the model.
        labels: [B] int64 on the network's device.
        null_label: the label that means no class.
        guidance: off by default.
        guide: a second, weaker network for autoguidance; then the null label is not used.
        dtype: data type of the computation, by autocast. The result has the type of x_t.
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
        self.network, self.labels, self.dtype = network, labels, dtype
        self.guidance = guidance or Guidance()
        rule = self.guidance.rule
        self.pair = pair_with_guide(network, guide, labels) if guide else rule.pair(network, labels, null_label)
        self.combine = rule.combine()
        self.nfe = 0
        """Number of evaluations that the sampler asked for."""
        self.unguided = 0
        """Number of those that ran the network once, without guidance."""
        self.zero_velocities = 0
        """Number of those that returned 0 without running a network."""

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        """The guided velocity [B, C, h, w] at `x_t [B, C, h, w]` and time `t`, in the type of `x_t`."""
        self.nfe += 1
        if self.guidance.acts_at(t) and self.guidance.rule.is_zero_at(t):
            self.zero_velocities += 1
            return torch.zeros_like(x_t)
        w = self.guidance.scale_at(t)
        time = x_t.new_full((1,), t)  # filled on the device, not copied from the host
        with autocast(x_t.device, self.dtype):
            if w == 1:
                self.unguided += 1
                return self.network(x_t, time, self.labels).to(x_t.dtype)
            strong, weak = self.pair.evaluate(x_t, time)
        return self.combine(strong, weak, w=w, x_t=x_t, t=t).to(x_t.dtype)

    @property
    def passes(self) -> float:
        """Number of passes of one image through a network; a part of a pass counts by its MACs."""
        return self.unguided + self.pair.passes * (self.nfe - self.unguided - self.zero_velocities)

    @property
    def saved(self) -> float:
        """Number of passes that the interval and zero velocities save, compared with guidance at every evaluation."""
        if self.guidance.is_off:
            return 0
        return (self.pair.passes - 1) * self.unguided + self.pair.passes * self.zero_velocities
