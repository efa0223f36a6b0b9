"""Exponential moving averages of the weights, in float32, for several decays at once.

With warm-up the decay after n updates is `min(decay, (1 + n) / (10 + n))`, so that early averages already follow the
weights; without it the decay is constant, as published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class EMA:
    """Averages of `model`'s parameters, one set for each of `decays`.

    Parameters may be sharded: each device then averages its own part.
    """

    def __init__(self, model: nn.Module, *, decays: Sequence[float], warmup: bool):
        self.decays, self.warmup = tuple(decays), warmup
        self.names = [name for name, _ in model.named_parameters()]
        self._parameters = list(model.parameters())
        self.averages = [[p.detach().clone().float() for p in self._parameters] for _ in self.decays]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Moves every average towards the weights. `updates`: how many updates were made before this one."""
        for decay, averages in zip(self.decays, self.averages, strict=True):
            now = min(decay, (1 + updates) / (10 + updates)) if self.warmup else decay
            torch._foreach_lerp_(averages, [p.detach() for p in self._parameters], 1 - now)

    def state(self, index: int = 0) -> dict[str, Tensor]:
        """Names and averages of the decay number `index`; the tensors are live, not copies."""
        return dict(zip(self.names, self.averages[index], strict=True))

    @torch.no_grad()
    def load(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Copies the averages of the decay number `index` from `state`, which is sharded as they are."""
        for name, average in zip(self.names, self.averages[index], strict=True):
            average.copy_(state[name])
