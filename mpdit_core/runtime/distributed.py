"""Several processes for one job: joining the group that torchrun started, and starting a group on this machine.

Each process computes its share from (rank, size); rank 0 alone reports. Without torchrun, rank is 0 and size 1, and no
method of `World` communicates, so jobs have one code path. Torch is imported only where processes communicate.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from mpdit_core.errors import Interrupted, UserError
from mpdit_core.runtime import signals
from mpdit_core.runtime.concurrency import usable_cores
from mpdit_core.runtime.signals import StopRequest

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

LAUNCHER = "MPDIT_LAUNCHER"  # in the environment of a process that `launch` started: the launcher's process id
SECONDS_BETWEEN_CHECKS = 0.1
SECONDS_TO_JOIN = 300.0  # for all processes, on all machines, to start
SECONDS_TO_END = 30.0  # for a process whose work is lost in any case
SECONDS_TO_SAVE = 1800.0  # for a checkpoint on a slow disk

_joined = threading.Event()  # this process is in its group


@dataclass(frozen=True)
class World:
    """This process among the processes of a job."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until all processes have called it."""
        if self.size > 1:
            _dist().barrier()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums `tensor` in place over all processes and returns it."""
        if self.size > 1:
            _dist().all_reduce(tensor)
        return tensor

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's `value` (picklable) on every process."""
        if self.size == 1:
            return value
        box = [value]
        _dist().broadcast_object_list(box, src=0)
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """The `value` (picklable) of each process in order of rank, on every process."""
        if self.size == 1:
            return [value]
        box: list[T] = [value] * self.size
        _dist().all_gather_object(box, value)
        return box

    def on_main(self, action: Callable[[], T]) -> T:
        """Calls `action` on rank 0 alone and returns its result (picklable) on every process.

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
        return value  # pyright: ignore[reportReturnType]  # without a failure it is what `action` returned


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Joins the group that torchrun describes (NCCL on GPUs, gloo elsewhere), if there is one; leaves it at the end.

    Raises:
        UserError: another process of the group cannot be reached or has ended (`process-ended`).
    """
    if not under_torchrun():
        yield World()
        return
    dist = _dist()
    if dist.is_initialized():  # a job within a job
        yield _world()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _group_errors():
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=SECONDS_TO_JOIN)))
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(minutes=60),
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
        _joined.set()
        try:
            yield _world()
        finally:
            with contextlib.suppress(RuntimeError):  # the others may be gone
                dist.destroy_process_group()


@contextmanager
def _group_errors() -> Iterator[None]:
    """Turns torch's errors about a lost process of the group into `Interrupted` after a signal, else a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, _dist().DistError) or "gloo" in str(error)):
            raise
        if signals.last_received is not None:  # all were told to end, and another one ended first
            raise Interrupted(signals.last_received) from None
        raise UserError(
            "another process of the group cannot be reached or has ended",
            code="process-ended",
            expected="all processes running until the end of the job",
            remedy="read the error of that process, then run the same command again",
        ) from error


def _world() -> World:
    return World(_dist().get_rank(), _dist().get_world_size())


def _dist() -> ModuleType:
    import torch.distributed

    return torch.distributed


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
    """Runs `python -m mpdit_cli ARGUMENTS` in `nproc` processes of one group, and waits for them.

    A stop signal is passed on, and the processes may take as long as they need to save. After a second signal, or when
    one of them has failed, those that still run after `SECONDS_TO_END` are killed. They end by themselves when this
    process is gone (`watch_launcher`).

    Returns:
        the exit code of the job, which is that of the process that failed first; and a sentence about that process, if
        a signal ended it before it could report.
    """
    threads = max(1, usable_cores() // nproc)
    common = {"OMP_NUM_THREADS": str(threads)} | os.environ | {
        "WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()), LAUNCHER: str(os.getpid()),
    }  # fmt: skip
    group: list[subprocess.Popen[bytes]] = []
    with StopRequest(then=lambda signum: _signal_all(group, signum)) as stop:
        for rank in range(nproc):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "mpdit_cli", *arguments]
            group.append(subprocess.Popen(command, env=common | place, start_new_session=True))
        try:
            failed = _wait_for_all(group, stop)
        except Interrupted as again:
            _end(group)
            return 128 + again.signum, None
    if failed is None:
        return 0, None
    code = group[failed].returncode
    if code > 0 or -code == stop.received:
        return (code if code > 0 else 128 - code), None
    name = signal.Signals(-code).name
    hint = " (is the memory full?)" if name == "SIGKILL" else ""
    text = f"process {failed} of {nproc} (pid {group[failed].pid}) was stopped by {name}{hint}; the others were stopped"
    return 128 - code, text


def _wait_for_all(group: list[subprocess.Popen[bytes]], stop: StopRequest) -> int | None:
    """Waits until all have ended, and ends the others when one has failed. Returns the rank that failed first."""
    if stop.received is not None:  # while they were started
        _signal_all(group, stop.received)
    while running := [process for process in group if process.poll() is None]:
        failed = _first_failed(group)
        if failed is not None and group[failed].returncode != 128 + (stop.received or 0):
            _end(running)
            return failed
        time.sleep(SECONDS_BETWEEN_CHECKS)
    return _first_failed(group)


def _first_failed(group: list[subprocess.Popen[bytes]]) -> int | None:
    return next((rank for rank, process in enumerate(group) if process.returncode), None)


def _end(group: list[subprocess.Popen[bytes]]) -> None:
    """Asks processes to end, and kills those that still run after `SECONDS_TO_END`."""
    _signal_all(group, signal.SIGTERM)
    end = time.monotonic() + SECONDS_TO_END
    for process in group:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _signal_all(group: list[subprocess.Popen[bytes]], signum: int) -> None:
    for process in group:
        process.send_signal(signum)  # does nothing to one that has ended


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def watch_launcher() -> None:
    """Ends this process of a group when its launcher is gone.

    It gets SIGTERM, so that it finishes the step and saves. A process that has not joined its group yet, or still runs
    after `SECONDS_TO_SAVE`, ends at once.
    """
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(SECONDS_BETWEEN_CHECKS)
        if _joined.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(SECONDS_TO_SAVE)
        os._exit(128 + signal.SIGTERM)

    if os.name != "nt":  # Windows does not tell a process that its parent is gone
        threading.Thread(target=watch, name="launcher", daemon=True).start()
