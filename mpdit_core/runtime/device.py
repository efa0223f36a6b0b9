"""The device to compute on: choosing it, making its results repeatable, and measuring how fast it is."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mpdit_core.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


def select_device(name: str = "auto") -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `mps`; under torchrun each process gets its own GPU.

    It also prepares this process. For the CPU: it keeps the memory that it frees. For a GPU: that GPU becomes the
    current one, and an environment variable is set that `deterministic` needs.

    Raises:
        UserError: an unknown name, or a device this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    have = [kind for kind, is_there in available.items() if is_there]
    if name not in ("auto", *have):
        raise UserError(
            f"--device {name}: torch finds no such device on this machine",
            code="no-such-device",
            expected=" or ".join(have),
            remedy="--device auto",
        )
    if name == "auto":
        name = have[0]
    if name == "cuda":
        index = int(os.environ.get("LOCAL_RANK", 0))
        if index >= torch.cuda.device_count():
            raise UserError(
                f"the processes on this machine need {index + 1} GPUs or more, but it has {torch.cuda.device_count()}",
                code="no-such-device",
                expected="at least one GPU per process",
                remedy="lower --nproc",
            )
        torch.cuda.set_device(index)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # `deterministic` needs it before the first product
        return torch.device("cuda", index)
    if name == "cpu":
        _keep_freed_memory()
    return torch.device(name)


def _keep_freed_memory() -> None:
    """Keeps freed memory for the tensors of the next step, which have the same sizes.

    glibc would give large blocks back to the system, and get them again page by page. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_MMAP_MAX, 0)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Makes the same computation give the same bits every time; torch's flags are restored.

    Only GPUs need it: their fastest backward pass of attention adds in any order, and torch.compile chooses the order
    of sums by timing. The process must call `select_device` before its first matrix product on the GPU.

    Raises:
        RuntimeError: in the context, by an operation without a deterministic implementation.
    """
    if device.type != "cuda":
        yield
        return
    was_on, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic
    fills = filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False  # every new tensor would be filled with NaN first
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warns)
        filling.fill_uninitialized_memory = fills


def matmul_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.25) -> float:
    """FLOPs per second of one large square matrix product, the best of as many as fit into `seconds`.

    Utilisation is measured against this rate, which the machine really reaches, and not against its data sheet. The
    best product counts, because other programs can only make one slower.

    Args:
        dtype: of the factors (float32 products follow torch's own precision settings).
    """
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, spent, runs = float("inf"), 0.0, 0
    while runs < 3 or spent < seconds:
        started = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        taken = time.perf_counter() - started
        best, spent, runs = min(best, taken), spent + taken, runs + 1
    return 2 * side**3 / best


def synchronize(device: torch.device) -> None:
    """Waits until `device` has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes, on the GPU or in the machine; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
