"""Loss and gradients of a batch as one CUDA graph, which one process on one GPU replays at every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mpdit_core.config import TrainConfig
from mpdit_core.errors import UserError
from mpdit_core.model.cuda_graphs import Recorded, require_cuda
from mpdit_core.runtime.distributed import World
from mpdit_core.training.batches import Batch

Numbers = tuple[Tensor, dict[str, Tensor]]
"""The loss, and the parts of it that are logged."""


class RecordedGradients:
    """`backward(batch)` computes the loss, its parts, and the gradients of all parameters of `module`.

    The gradients of a step are those of the graph; the next step overwrites them. The first step takes longer: it
    computes four times, and records.
    """

    def __init__(self, backward: Callable[[Batch], Numbers], module: nn.Module):
        self._backward = backward
        self._parameters = list(module.parameters())
        self._names: tuple[str, ...] = ()
        self._record = Recorded(self._of_tensors)

    def __call__(self, batch: Batch) -> Numbers:
        tensors = batch.tensors()
        self._names = tuple(tensors)
        loss, parts, gradients = self._record(*tensors.values())
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss.clone(), {name: part.clone() for name, part in parts.items()}

    def _of_tensors(self, *tensors: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor | None]]:
        for parameter in self._parameters:
            parameter.grad = None  # so that new gradients are made, and not added to older ones
        loss, parts = self._backward(Batch(**dict(zip(self._names, tensors, strict=True))))
        return loss, parts, [parameter.grad for parameter in self._parameters]


def require_recordable(train: TrainConfig, device: torch.device, world: World) -> None:
    """Raises `UserError` where `train.compile` is "graphs" and the run cannot be recorded."""
    if train.compile != "graphs":
        return
    remedy = "--set train.compile=auto"
    require_cuda(device, remedy=remedy)
    if world.size > 1 or train.accumulation > 1:
        raise UserError(
            "steps of several processes or micro-batches are not recorded as a CUDA graph",
            code="conflicting-options",
            expected="one process, and train.accumulation = 1",
            remedy=remedy,
        )
