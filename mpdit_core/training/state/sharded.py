"""The state of a sharded run (FSDP2) on the disk: every process writes its own part of it.

    <checkpoint>/training/shard-….safetensors    one per process: its parts of weights and optimizer

It is written and read by torch.distributed.checkpoint in its safetensors format, without pickle. It is read whole, so
that the run can be resumed with any number of processes, sharded or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mpdit_core.errors import UserError


def copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, sharded as the originals are. All processes must call it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def copy(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor.detach().to("cpu", copy=True)
        local = tensor.to_local().detach().to("cpu", copy=True)
        return DTensor.from_local(
            local, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )

    return {name: copy(tensor) for name, tensor in tensors.items()}


def write(folder: Path, tensors: Mapping[str, Tensor], *, group: dist.ProcessGroup) -> None:
    """Writes this process's parts under `folder`. All processes of `group` must call it, with the same folder.

    Raises:
        UserError: on every process, when one of them could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise UserError(
            f"process {rank} could not write its part of {folder.parent}: {cause}",
            code="cannot-write",
            expected=f"room for a checkpoint, and a folder {folder.parent} that all machines share",
            remedy="free some space or correct the permissions, then repeat the command; older checkpoints are kept",
        ) from error
    finally:
        dist.barrier(group)  # gloo aborts a process that leaves while another still reads its last message


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors under `folder`, whole. Raises `UserError` when one cannot be read.

    The caller checks that no file is missing, as `find_checkpoints` does: the format does not record their number.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        described = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        tensors = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in described.items()}  # pyright: ignore[reportAttributeAccessIssue]
        with warnings.catch_warnings(action="ignore"):  # about reading in one process, which is intended
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except Exception as error:  # of the file system, of safetensors, of the planner
        raise UserError(
            f"{folder} cannot be read: {error}",
            code="damaged-file",
            expected="the parts that all processes wrote",
            remedy=f"remove {folder.parent}: the run resumes from the checkpoint before it",
        ) from error
    return tensors
