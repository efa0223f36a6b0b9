"""One model on one or many devices: DDP or FSDP2, compiled block by block, and its state as plain tensors.

State leaves here on the CPU and without prefixes, whole or as the parts that `sharded.py` writes and reads back whole,
so that a run can go on with another number of processes or another way of sharing.
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
from mpdit_core.model.transformer import MPDiT
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.precision import is_fast_in_bfloat16
from mpdit_core.training.state.sharded import can_write, copy_to_cpu


class ParallelModel:
    """`forward` is what the loss calls; `module` holds the parameters, under their plain names."""

    def __init__(self, module: MPDiT, train: TrainConfig, *, device: torch.device, world: World):
        self.module = module.to(device)
        self.module.activation_checkpointing = train.activation_checkpointing
        self.sharded = train.parallel == "fsdp" and world.size > 1
        self.writes_parts = self.sharded and can_write()
        self.autocast_dtype = autocast_dtype(train.precision, device)
        self._device_type = device.type
        if should_compile(train.compile, device):
            self.module.compile_blocks()
        self.forward: nn.Module = self.module
        if self.sharded:
            _shard(self.module)
        elif world.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # broadcast_buffers, renamed in 2.15
                self.forward = DistributedDataParallel(
                    self.module, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
                )

    def autocast(self) -> AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self._device_type, dtype=self.autocast_dtype)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around the backward of one part of a batch: gradients are exchanged only after the last part."""
        if self.sharded:
            self.module.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue]
        elif isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return nullcontext()

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameter-like tensors, gathered if sharded, copied to the CPU. All processes must call it."""
        return {name: gather(tensor).detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameter-like tensors copied to the CPU, each process's part of sharded ones. All must call it."""
        return copy_to_cpu(tensors) if self.writes_parts else self.whole(tensors)

    def weights(self) -> dict[str, Tensor]:
        """The raw weights themselves, by name."""
        return dict(self.module.named_parameters())

    @torch.no_grad()
    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.copy_(spread(state[name], parameter))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """`exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`: the state itself, by name."""
        return {
            f"{slot}.{name}": value
            for name, parameter in self.module.named_parameters()
            for slot, value in optimizer.state.get(parameter, {}).items()
        }

    @torch.no_grad()
    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
        """The inverse of a whole `optimizer_state`; an empty one resets the optimizer."""
        optimizer.state.clear()
        parameters = dict(self.module.named_parameters())
        for key, value in flat.items():
            slot, _, name = key.partition(".")
            parameter = parameters[name]
            like = spread(value.to(parameter.dtype), parameter) if value.shape == parameter.shape else value
            place = like.to(local(parameter).device) if slot != "step" or parameter.is_cuda else like
            optimizer.state[parameter][slot] = place.clone()


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16, or None for plain float32."""
    if precision == "bfloat16" or (precision == "auto" and is_fast_in_bfloat16(device)):
        return torch.bfloat16
    return None


def should_compile(setting: bool | str, device: torch.device) -> bool:
    return device.type == "cuda" if setting == "auto" else bool(setting)


def _shard(module: MPDiT) -> None:
    from torch.distributed.fsdp import fully_shard

    for stage in module.stages:
        for block in stage.blocks:  # pyright: ignore[reportGeneralTypeIssues, reportAttributeAccessIssue]
            fully_shard(block)
    fully_shard(module)


def gather(tensor: Tensor) -> Tensor:
    """A sharded tensor in one piece (all processes must call it), or the tensor itself."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, or the tensor itself."""
    return tensor.to_local() if _is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def spread(whole: Tensor, parameter: Tensor) -> Tensor:
    """`whole` sharded as `parameter` is, on its device; the inverse of `gather`."""
    if not _is_sharded(parameter):
        return whole
    from torch.distributed.tensor import distribute_tensor

    placed = whole.to(local(parameter).device)
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements)  # pyright: ignore[reportAttributeAccessIssue]


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor; importing that class costs two seconds
