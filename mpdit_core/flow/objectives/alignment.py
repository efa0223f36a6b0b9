"""Alignment of the coarse stage's tokens with a teacher's features (REPA, arXiv 2410.06940; iREPA, arXiv 2512.10794).

`mpdit encode-latents --teacher NAME` stores the features on the coarse stage's grid, so training runs no second
network. Shapes: tokens [B, N, D], features [B, N, F], N tokens row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mpdit_core.protocols import LogPart, NetworkShape, Objective, TrainedNetwork, TrainingBatch, option

EPSILON = 1e-6  # added to a standard deviation


@dataclass(frozen=True, kw_only=True)
class Alignment(Objective):
    """Minus the cosine between the projected tokens of the coarse stage and the teacher's features, over all tokens.

    With `projector="convolution"` and `normalise="spatial"` it is the loss of iREPA; with the defaults, of REPA.
    """

    weight: float = option(0.5, "factor of this term in the loss; published: 0.5; 0: left out", minimum=0)
    projector: Literal["mlp", "convolution"] = option(
        "mlp", "from tokens to features: three linear layers with SiLU (REPA), or a convolution of 3 × 3 tokens (iREPA)"
    )
    hidden: int = option(0, "width of the mlp's hidden layers; 0: the network's width; REPA: 2048", minimum=0)
    normalise: Literal["none", "spatial"] = option(
        "none", "the teacher's features: as they are, or standardised over the tokens of each image (iREPA)"
    )
    spatial_mean: float = option(
        1.0, "part of an image's mean feature that the spatial normalisation subtracts", minimum=0, maximum=1
    )

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    def modules(self, network: NetworkShape) -> nn.Module:
        assert network.token_grid is not None, "flow/loss.py refuses a network without it, as `needs` has `teacher`"
        if self.projector == "convolution":
            return Convolution(network.width, network.teacher_features, grid=network.token_grid)
        hidden = self.hidden or network.width
        return nn.Sequential(
            nn.Linear(network.width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, network.teacher_features),
        )

    def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:  # noqa: ARG002
        tokens, features = network.prediction.tokens, batch.teacher
        assert tokens is not None, "refused before the first step"
        assert features is not None, "it is in `needs`"
        features = features.float()
        if self.normalise == "spatial":
            centred = features - self.spatial_mean * features.mean(dim=1, keepdim=True)
            features = centred / (features.std(dim=1, keepdim=True, correction=0) + EPSILON)
        return -F.cosine_similarity(network.modules(tokens).float(), features, dim=-1).mean()


class Convolution(nn.Module):
    """A convolution of 3 × 3 tokens: [B, N, D] -> [B, N, F]."""

    def __init__(self, width: int, features: int, *, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.convolution = nn.Conv2d(width, features, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.convolution(tokens.mT.unflatten(2, self.grid)).flatten(2).mT
