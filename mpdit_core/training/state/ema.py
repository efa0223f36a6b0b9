"""Averages of the weights in float32, several at once: exponential averages, and power-function averages.

The first is used for samples. To add a kind: a class with `name` and `share_kept` here, and its settings in
`averages_of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpdit_core.config import TrainConfig
from mpdit_core.models import power_ema
from mpdit_core.training.state.parallel import shard_like


@dataclass(frozen=True)
class ExponentialAverage:
    """The usual EMA of a constant `decay`, as published.

    With warm-up the decay is `min(decay, (1 + n) / (10 + n))` after n updates, so that early averages already follow
    the weights.
    """

    decay: float
    warmup: bool

    @property
    def name(self) -> str:
        return f"ema-{self.decay}"

    def share_kept(self, updates: int) -> float:
        """The fraction of the average that an update keeps. `updates`: number of updates before it."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay


@dataclass(frozen=True)
class PowerAverage:
    """EDM2's average: its length is a constant fraction of the run so far. `width` is its sigma_rel."""

    width: float

    @property
    def name(self) -> str:
        return f"power-{self.width}"

    def share_kept(self, updates: int) -> float:
        """As in `ExponentialAverage`; the first update keeps nothing."""
        return power_ema.share_kept(self.width, updates + 1)


Average = ExponentialAverage | PowerAverage


def averages_of(train: TrainConfig) -> tuple[Average, ...]:
    """The averages that a run keeps, in the order of its configuration."""
    exponential = [ExponentialAverage(decay, train.ema_warmup) for decay in train.ema_decays]
    return (*exponential, *(PowerAverage(width) for width in train.ema_widths))


def snapshot_interval(train: TrainConfig, total_steps: int) -> int:
    """Steps between snapshots of the power-function averages."""
    return train.ema_snapshot_every or max(1, total_steps // 32)


class EMA:
    """Averages of `model`'s parameters, one set for each of `kinds`.

    Parameters may be sharded: each device then averages its own part.
    """

    def __init__(self, model: nn.Module, kinds: Sequence[Average]):
        self.kinds = tuple(kinds)
        self._parameters = dict(model.named_parameters())
        self.averages = [[p.detach().clone().float() for p in self._parameters.values()] for _ in self.kinds]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Moves every average towards the weights. `updates`: number of updates before this one."""
        weights = [p.detach() for p in self._parameters.values()]
        for kind, averages in zip(self.kinds, self.averages, strict=True):
            torch._foreach_lerp_(averages, weights, 1 - kind.share_kept(updates))

    def state(self, index: int = 0) -> dict[str, Tensor]:
        """Names and averages of kind `index`; the tensors themselves, not copies."""
        return dict(zip(self._parameters, self.averages[index], strict=True))

    @torch.no_grad()
    def load(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Copies the averages of kind `index` from `state`, whole tensors. All processes must call it."""
        for name, average in self.state(index).items():
            average.copy_(shard_like(average, state[name]))
