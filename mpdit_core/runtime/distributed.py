"""Several processes on one job: joining a group under torchrun, and starting one on this machine.

Each process works out its share from (rank, size); rank 0 alone reports. Without torchrun, rank is 0 and size 1 and
every method of `World` is a no-op, so jobs have one code path. Torch is imported only where processes talk.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from mpdit_core.errors import UserError
from mpdit_core.runtime.concurrency import usable_cores

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place. `rank` of `size`; `local_rank` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums `tensor` in place over all processes and returns it."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's `value`, everywhere (picklable)."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """Everyone's `value`, in rank order, everywhere (picklable)."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        box: list[T] = [value] * self.size
        dist.all_gather_object(box, value)
        return box

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` returns (picklable) on rank 0, which alone calls it, everywhere; the others wait for it.

        Raises:
            UserError: on every process, when `action` raised it.
        """
        value: T | None = None
        failure: UserError | None = None
        if self.is_main:
            try:
                value = action()
            except UserError as error:
                failure = error
        value, failure = self.broadcast_object((value, failure))
        self.barrier()  # gloo aborts a process that leaves while another still reads its last message
        if failure is not None:
            raise failure
        return value  # pyright: ignore[reportReturnType]  # there is no failure, so it is what `action` returned


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """This process's rank as torchrun set it, before any group is joined; 0 alone."""
    return int(os.environ.get("RANK", 0))


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Joins the group that torchrun describes (NCCL on GPUs, gloo elsewhere), or stays alone; leaves it at the end."""
    if not under_torchrun():
        yield World()
        return
    import torch.distributed as dist

    if dist.is_initialized():  # a job within a job
        yield _world()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=60), device_id=device if device.type == "cuda" else None)
    try:
        yield _world()
    finally:
        dist.destroy_process_group()


def _world() -> World:
    import torch.distributed as dist

    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))


def count_processes(nproc: str, device: torch.device) -> int:
    """Number of processes for `nproc`, a number or `auto`: one per GPU, and one on a CPU.

    Raises:
        UserError: neither a positive number nor `auto`.
    """
    if nproc == "auto":
        import torch

        return max(torch.cuda.device_count(), 1) if device.type == "cuda" else 1
    if not nproc.isdecimal() or int(nproc) < 1:
        raise UserError(f"nproc = {nproc}", code="invalid-value", expected="a number of processes, or auto")
    return int(nproc)


def launch(arguments: Sequence[str], nproc: int) -> tuple[int, str | None]:
    """Runs `python -m mpdit_cli ARGUMENTS` in `nproc` processes of one group.

    Torch's elastic launcher starts and watches them: when one dies, all stop.

    Returns:
        the exit code of the job, which is that of the process that failed first; and a sentence about that process,
        if a signal ended it before it could say anything.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, usable_cores() // nproc)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "mpdit_cli", *arguments)
    except SignalException as signalled:  # it reached the processes, which saved what there was
        return 128 + int(signalled.sigval), None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode, None
        name = signal.Signals(-failure.exitcode).name
        hint = " (is the memory full?)" if name == "SIGKILL" else ""
        text = f"process {rank} of {nproc} (pid {failure.pid}) was ended by {name}{hint}; the others were stopped"
        return 128 - failure.exitcode, text
    return 0, None
