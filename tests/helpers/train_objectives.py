"""Objectives for tests of training; a separate module, so that the processes of a test find it by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mpdit_core.api import LogPart, NetworkShape, Objective, TrainedNetwork, TrainingBatch, option

OBJECTIVES: dict[str, tuple[str, ...]] = {
    "flow-matching": ("objective.flow-matching.weighting=min-snr", "time.density=mode", "time.shift=2.0"),
    "velocity-direction": ("objective.velocity-direction.vector=image", "model.prediction=latents"),
    "contrastive": ("objective.contrastive.weight=0.05",),
    "alignment": ("objective.alignment.weight=0.5", "objective.alignment.projector=convolution"),
    "with-modules": ('objective."train_objectives:Reader".weight=0.5', "train.grad_clip=0.5"),
}
"""The settings for a run with each objective, and for other settings that the loss depends on."""


@dataclass
class Reader(Objective):
    """Predicts the mean noise of a patch from each coarse token, by its own linear layer."""

    weight: float = option(1.0, "factor of this term in the loss")

    needs: ClassVar[tuple[str, ...]] = ()

    def modules(self, network: NetworkShape) -> nn.Module:
        assert network.token_grid is not None
        return nn.Linear(network.width, network.latent_shape[0])

    def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:
        tokens = network.prediction.tokens
        assert tokens is not None
        read = network.modules(tokens).transpose(1, 2)  # [B, C, N]
        side = round(read.shape[2] ** 0.5)
        loss = F.mse_loss(read.float(), F.adaptive_avg_pool2d(batch.noise, side).flatten(2))
        log("error", loss.sqrt() ** 2)
        return loss
