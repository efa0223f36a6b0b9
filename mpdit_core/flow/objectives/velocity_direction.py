"""The direction of the velocity: one minus the cosine of the angle to the target (FasterDiT, arXiv 2410.10356, section
on supervision), used in addition to the squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from mpdit_core.errors import UserError
from mpdit_core.flow.path import target_velocity
from mpdit_core.protocols import LogPart, NetworkShape, Objective, TrainedNetwork, TrainingBatch, option


@dataclass(frozen=True, kw_only=True)
class VelocityDirection(Objective):
    """One minus the cosine between the velocity and its target."""

    weight: float = option(1.0, "factor of this term in the loss; 0: left out", minimum=0)
    vector: Literal["pixel", "image"] = option(
        "pixel", "vectors to compare: the channels of each latent pixel (published), or all values of an image"
    )

    needs: ClassVar[tuple[str, ...]] = ()

    def modules(self, network: NetworkShape) -> None:
        if self.vector == "pixel" and network.latent_shape[0] == 1:
            raise UserError(
                "the objective velocity-direction compares the channels of each latent pixel, but there is only one",
                code="does-not-fit",
                expected="latents of several channels",
                remedy="--set objective.velocity-direction.vector=image",
            )

    def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:  # noqa: ARG002
        velocity, target = network.prediction.velocity.float(), target_velocity(batch.latents, batch.noise)
        if self.vector == "image":
            velocity, target = velocity.flatten(1), target.flatten(1)
        return (1 - F.cosine_similarity(velocity, target, dim=1)).mean()
