"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from mpdit_core.config import TrainConfig


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters, in one fused kernel."""
    return torch.optim.AdamW(
        model.parameters(), lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay, fused=True
    )


def learning_rate(train: TrainConfig, *, step: int, total_steps: int) -> float:
    """The learning rate of step `step`, counted from 0: linear warm-up, then constant or half a cosine down to 0."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.learning_rate
    progress = (step - train.warmup_steps) / max(1, total_steps - train.warmup_steps)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
