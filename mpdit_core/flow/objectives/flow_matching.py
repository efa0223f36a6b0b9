"""Flow matching: the squared error of the velocity (MPDiT, arXiv 2603.26357, section 2; arXiv 2210.02747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mpdit_core.api import LogPart, Objective, TrainedNetwork, TrainingBatch, option
from mpdit_core.flow.path import target_velocity


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Objective):
    """The mean squared error of the velocity."""

    weight: float = option(1.0, "factor of this term in the loss; 0: left out", minimum=0)

    needs: ClassVar[tuple[str, ...]] = ()

    def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:  # noqa: ARG002
        return F.mse_loss(network.prediction.velocity.float(), target_velocity(batch.latents, batch.noise))
