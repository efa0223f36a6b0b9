"""Contrastive flow matching: a large distance to the velocity of another image (arXiv 2506.05350, equation 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mpdit_core.protocols import LogPart, Objective, TrainedNetwork, TrainingBatch, option


@dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """Minus the mean squared distance to the target velocity of another image, drawn at random from the same batch.

    It separates the velocities of classes that overlap. The default weight is the published one; with a weight near 1
    the sum with flow matching has no minimum.
    """

    weight: float = option(0.05, "factor of this term in the loss; 0: left out", minimum=0)

    needs: ClassVar[tuple[str, ...]] = ("negative",)

    def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:  # noqa: ARG002
        assert batch.negative is not None, "it is in `needs`"
        return -F.mse_loss(network.prediction.velocity.float(), batch.negative)
