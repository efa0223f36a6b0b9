"""Flow matching: the squared error of the velocity (MPDiT, arXiv 2603.26357, section 2; arXiv 2210.02747).

To add a weighting: a function `(t, snr_limit) -> weights [B]` below, its row in `WEIGHTINGS`, its name in `Weighting`.
On the straight path the predicted latents are `x_t - t·velocity`, so an error of the velocity is `t` times as large in
the latents and `1 - t` times as large in the noise; the signal-to-noise ratio is `((1 - t) / t)²`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mpdit_core.flow.path import target_velocity
from mpdit_core.protocols import LogPart, Objective, TrainedNetwork, TrainingBatch, option

Weighting = Literal["uniform", "snr", "min-snr"]


def snr(t: Tensor, snr_limit: float) -> Tensor:  # noqa: ARG001
    """The loss becomes the squared error of the noise, as in DDPM (arXiv 2006.11239, equation 14): the squared error
    of the latents times the signal-to-noise ratio.
    """
    return (1 - t).square()


def min_snr(t: Tensor, snr_limit: float) -> Tensor:
    """The squared error of the latents times min(signal-to-noise ratio, limit) (arXiv 2303.09556, section 3.4)."""
    return torch.minimum((1 - t).square(), snr_limit * t.square())


WEIGHTINGS: dict[str, Callable[[Tensor, float], Tensor]] = {"snr": snr, "min-snr": min_snr}


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Objective):
    """The mean squared error of the velocity, weighted by time."""

    weight: float = option(1.0, "factor of this term in the loss; 0: left out", minimum=0)
    weighting: Weighting = option(
        "uniform", "weight of the error by time: uniform, snr (error of the noise) or min-snr"
    )
    snr_limit: float = option(5.0, "largest signal-to-noise ratio that min-snr counts", minimum=0)

    needs: ClassVar[tuple[str, ...]] = ()

    def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:  # noqa: ARG002
        velocity, target = network.prediction.velocity.float(), target_velocity(batch.latents, batch.noise)
        if self.weighting == "uniform":
            return F.mse_loss(velocity, target)
        errors = (velocity - target).square().mean(dim=(1, 2, 3))  # [B]
        return (WEIGHTINGS[self.weighting](batch.t, self.snr_limit) * errors).mean()
