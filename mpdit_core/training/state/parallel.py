"""One model on one or many devices: DDP or FSDP2, compiled block by block, and its state as plain tensors.

State is returned on the CPU and without prefixes, whole or as the parts that `sharded.py` writes. It is loaded whole,
so that a run can be resumed with another number of processes or another kind of parallelism. This, the bit-exact
resume and quick imports are why torch.distributed.checkpoint.state_dict is not used here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mpdit_core.config import TrainConfig
from mpdit_core.flow.loss import TrainingLoss
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.precision import choose_dtype, should_compile


class ParallelModel:
    """`forward` computes the loss of a batch; `module` is the network."""

    def __init__(self, loss: TrainingLoss, train: TrainConfig, *, device: torch.device, world: World):
        self.loss = loss.to(device)
        self.module = loss.network
        self.module.activation_checkpointing = train.activation_checkpointing
        self.sharded = train.parallel == "fsdp" and world.size > 1
        self.dtype = choose_dtype(train.precision, device, self.module.config)
        if should_compile(train.compile, device):
            self.module.compile_blocks()
        self.forward: nn.Module = self.loss
        if self.sharded:
            _shard(self.loss)
        elif world.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # broadcast_buffers, renamed in 2.15
                self.forward = DistributedDataParallel(
                    self.loss, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
                )

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """A context for the backward pass of a micro-batch: only the `last` of a batch exchanges gradients."""
        if self.sharded:
            self.loss.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue]
        elif isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return nullcontext()

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameter-like tensors, gathered if sharded, copied to the CPU. All processes must call it."""
        return {name: gather(tensor).detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def weights(self) -> dict[str, Tensor]:
        """The raw weights of the network by name: the parameters themselves, sharded ones as DTensors."""
        return dict(self.module.named_parameters())

    def trained(self) -> dict[str, Tensor]:
        """All that the optimizer updates: `weights`, and as `objective.TERM.…` those of the loss's terms."""
        of_terms = {f"objective.{name}": parameter for name, parameter in self.loss.term_modules.named_parameters()}
        return self.weights() | of_terms

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copies whole tensors into all that is trained. All processes must call it."""
        for name, parameter in self.trained().items():
            parameter.copy_(shard_like(parameter, state[name]))


def _shard(loss: TrainingLoss) -> None:
    from torch.distributed.fsdp import fully_shard

    for stage in loss.network.stages:
        for block in stage.get_submodule("blocks").children():
            fully_shard(block)
    fully_shard(loss)


def gather(tensor: Tensor) -> Tensor:
    """A sharded tensor in one piece (all processes must call it), or the tensor itself."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, or the tensor itself."""
    return tensor.to_local() if _is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def shard_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """`whole` sharded like `parameter`, on its device; the inverse of `gather`."""
    if not _is_sharded(parameter):
        return whole
    from torch.distributed.tensor import distribute_tensor

    placed = whole.to(local(parameter).device)
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements)  # pyright: ignore[reportAttributeAccessIssue]


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor; importing that class costs two seconds
