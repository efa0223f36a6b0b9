"""The cost of a time embedding without a closed formula: counted while it runs on tensors without data."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mpdit_core.model.time_embeddings import time_embedding


class TimeEmbeddingCost(NamedTuple):
    """Per image: MACs forward and backward, bytes kept for the backward pass; and the trainable parameters."""

    macs: int
    backward_macs: int
    saved_bytes: int
    parameters: int


@cache
def measure(name: str, width: int) -> TimeEmbeddingCost:
    """Runs the time embedding called `name` once, forward and backward.

    On fake tensors, which have the device "cpu": autocast does not support the device "meta".
    """
    forward, backward, saved = FlopCounterMode(display=False), FlopCounterMode(display=False), []
    with FakeTensorMode():
        module = time_embedding(name, width)
        parameters = {_storage(p) for p in module.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in parameters:
                saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), forward:
            vector = module(torch.empty(1))
        with backward:
            vector.sum().backward()
    return TimeEmbeddingCost(
        macs=forward.get_total_flops() // 2,
        backward_macs=backward.get_total_flops() // 2,
        saved_bytes=sum(saved),
        parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # identifies the memory of tensors without data
