"""The type that networks compute in: what `auto` means on a device, autocast, and the check against float32.

Used by training, sampling, encoding and decoding alike. Every global flag of torch that is changed here is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from mpdit_core.errors import UserError

Name = Literal["float32", "tf32", "bfloat16"]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are worth it: GPUs from Ampere on, never the CPU or MPS."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """torch.float32 or torch.bfloat16 for `auto`, `float32` or `bfloat16` on `device`."""
    if wanted == "auto":
        return torch.bfloat16 if is_fast_in_bfloat16(device) else torch.float32
    return DTYPES[wanted]


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` of torch.float32: how records and configurations write it."""
    return str(dtype).removeprefix("torch.")


def should_compile(setting: str, device: torch.device, *, worth_it: bool = True) -> bool:
    """Whether to compile for the setting `auto`, `on` or `off`. `auto`: on GPUs, where the work is long enough."""
    return setting == "on" or (setting == "auto" and device.type == "cuda" and worth_it)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Context in which networks compute in `dtype`; float32 is the network's own type, and nothing is cast."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


@contextmanager
def computing_in(name: Name, device: torch.device) -> Iterator[None]:
    """As `autocast`, and on a GPU float32 is exact unless `tf32` is asked for. torch's flags are put back."""
    flags: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [flag.allow_tf32 for flag in flags]
    try:
        if device.type == "cuda":
            for flag in flags:
                flag.allow_tf32 = name == "tf32"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def require(wanted: Name, device: torch.device) -> Name:
    """`wanted`. Raises `UserError` (`no-such-precision`) for one that `device` does not have."""
    if wanted != "float32" and not is_fast_in_bfloat16(device):
        raise UserError(
            f"precision {wanted} on {device}", code="no-such-precision", expected="float32, or a GPU from Ampere on"
        )
    return wanted


def fastest_that_agrees(
    candidates: Sequence[Name], compute: Callable[[Name], Tensor], *, difference: Callable[[Tensor, Tensor], float],
    limit: float,
) -> Name:  # fmt: skip
    """The first of `candidates`, fastest first, whose result is within `limit` of float32's; else float32.

    Args:
        compute: the result in a precision.
        difference: of two results, a number.
    """
    exact = compute("float32")
    for name in candidates:
        if difference(compute(name), exact) <= limit:
            return name
    return "float32"
