"""Loss and gradients of a batch as one CUDA graph, which one process on one GPU replays at every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mpdit_core.config import TrainConfig
from mpdit_core.errors import UserError
from mpdit_core.model.cuda_graphs import Recorded, require_cuda_graphs
from mpdit_core.runtime.distributed import World
from mpdit_core.training.batches import Batch

Numbers = tuple[Tensor, dict[str, Tensor]]
"""The loss, and the parts of it that are logged."""


class RecordedGradients:
    """`accumulate(batch)` computes the loss and its parts, and adds gradients to the parameters of `module`.

    The gradients of a step are those of the graph; the next step overwrites them. The first step takes longer: it
    computes four times, and records.
    """

    def __init__(self, accumulate: Callable[[Batch], Numbers], module: nn.Module):
        self._accumulate = accumulate
        self._parameters = list(module.parameters())
        self._names: tuple[str, ...] = ()  # of the fields of a batch
        self._recorded = Recorded(self._of_tensors)

    def __call__(self, batch: Batch) -> Numbers:
        tensors = batch.tensors()
        assert self._names in ((), tuple(tensors)), "batches of a run have the same fields"
        self._names = tuple(tensors)
        loss, parts, gradients = self._recorded(*tensors.values())
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss.clone(), {name: part.clone() for name, part in parts.items()}

    def _of_tensors(self, *tensors: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor | None]]:
        loss, parts = self._accumulate(Batch(**dict(zip(self._names, tensors, strict=True))))
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None  # so that the gradients of a warm-up are freed before the recording
        return loss, parts, gradients


def require_recordable(train: TrainConfig, device: torch.device, world: World) -> None:
    """Raises `UserError` where `train.compile` is "graphs" and the run cannot be recorded."""
    if train.compile != "graphs":
        return
    remedy = "--set train.compile=auto"
    require_cuda_graphs(device, remedy=remedy)
    if world.size > 1 or train.accumulation > 1:
        raise UserError(
            "steps of several processes or micro-batches are not recorded as a CUDA graph",
            code="conflicting-options",
            expected="one process, and train.accumulation = 1",
            remedy=remedy,
        )
