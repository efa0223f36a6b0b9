"""The type that networks compute in: what `auto` means, autocast, and the check against float32.

`auto` is measured, once per process and device, and never guessed from a device's name: bfloat16 where it is more
than 1.1 times as fast as float32 at the network's sizes. Training, sampling, encoding and decoding use it. Every global
flag of torch that is changed here is restored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpdit_core.config import ComputeType, ModelConfig, NetworkType
from mpdit_core.errors import UserError
from mpdit_core.runtime.device import synchronize

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}

MIN_GAIN = 1.1  # float32's time, as a multiple of the other type's
MIN_WIDTH = 128  # of a network; narrower ones gain nothing, and keep float32 unmeasured
MIN_PARAMETERS = 1_000_000  # likewise of an autoencoder
TRIED_ON = 2  # images, where an autoencoder is tried in each type
TRIED_AT = 128  # pixels: what is decided holds for larger images, and a CPU takes seconds for those
ROUNDS = 5  # of a measurement
ROWS = {"cuda": 16_384}  # tokens of a measurement, where they are not 1,024


def choose_dtype(wanted: str, device: torch.device, model: ModelConfig) -> torch.dtype:
    """The type for `auto`, `float32` or `bfloat16` that a network of this shape computes in on `device`."""
    if wanted != "auto":
        return DTYPES[wanted]
    if model.width < MIN_WIDTH:
        return torch.float32
    longest = model.class_tokens + (model.input_size // model.stages[-1].patch_size).area
    seconds = measured_seconds(device, model.width, longest, model.num_heads)
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    return torch.bfloat16 if gain > MIN_GAIN else torch.float32


@cache
def measured_seconds(device: torch.device, width: int, length: int, num_heads: int) -> dict[torch.dtype, float]:
    """Seconds of a matrix product and an attention over sequences of `length` tokens in each type, casts included.

    The shortest of some rounds counts.
    """
    sequences = max(1, ROWS.get(device.type, 1024) // length)
    heads = torch.full((sequences, num_heads, length, width // num_heads), 0.5, device=device)
    tokens = torch.full((sequences, length, width), 0.5, device=device)
    weight = torch.full((4 * width, width), 0.5, device=device)
    shortest = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(ROUNDS):  # in turn, so that a machine that is busy for a moment slows both
        for dtype, before in shortest.items():
            with torch.no_grad(), autocast(device, dtype):
                synchronize(device)
                started = time.perf_counter()
                F.linear(tokens, weight)
                F.scaled_dot_product_attention(heads, heads, heads)
                synchronize(device)
                shortest[dtype] = min(before, time.perf_counter() - started)
    return shortest


def dtype_name(dtype: torch.dtype) -> NetworkType:
    """The name of a type in records and configurations: `float32` for torch.float32."""
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def should_compile(setting: str, device: torch.device, *, worth_it: bool = True) -> bool:
    """Whether to compile, for the setting `auto`, `on`, `graphs` or `off`.

    Args:
        worth_it: whether compiling saves more time than it takes. `auto` compiles then, on a GPU.
    """
    return setting in ("on", "graphs") or (setting == "auto" and device.type == "cuda" and worth_it)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Context in which networks compute in `dtype`; float32 is the network's own type, and nothing is cast.

    Cast weights are not kept for a second use in the context: most are used once, and a CUDA graph must not read
    weights that were cast outside of it.
    """
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype, cache_enabled=False)


@contextmanager
def computing_in(name: ComputeType, device: torch.device) -> Iterator[None]:
    """The context of a frozen network. On a GPU, float32 is exact unless `name` is `tf32`. Flags are restored."""
    flags: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [flag.allow_tf32 for flag in flags]
    try:
        if device.type == "cuda":
            for flag in flags:
                flag.allow_tf32 = name == "tf32"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bfloat16"):  # not an outer one
            yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def require(wanted: ComputeType, device: torch.device) -> ComputeType:
    """`wanted`. Raises `UserError` (`no-such-precision`) for one that `device` does not have."""
    has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if wanted == "tf32" and not has_tf32:
        raise UserError(
            f"precision {wanted} does not exist on {device}",
            code="no-such-precision",
            expected="float32 or bfloat16; tf32 on NVIDIA GPUs since Ampere",
        )
    return wanted


def fastest_that_agrees(
    candidates: Sequence[ComputeType],
    compute: Callable[[ComputeType], Tensor],
    *,
    difference: Callable[[Tensor, Tensor], float],
    limit: float,
    min_gain: float = MIN_GAIN,
) -> ComputeType:
    """The fastest of `candidates` whose result is within `limit` of float32's; float32 where none is, or is faster.

    Args:
        compute: the result in a precision; it is timed the second time.
        difference: of two results, a number.
        min_gain: float32's time, as a multiple of the candidate's, that is exceeded; 0: any speed will do.
    """
    exact, exact_seconds = _timed(compute, "float32")
    tried: list[tuple[ComputeType, Tensor, float]] = [(name, *_timed(compute, name)) for name in candidates]
    for name, result, seconds in sorted(tried, key=lambda item: item[2]):
        if exact_seconds / seconds > min_gain and difference(result, exact) <= limit:
            return name
    return "float32"


def _timed(compute: Callable[[ComputeType], Tensor], name: ComputeType) -> tuple[Tensor, float]:
    result = compute(name)
    synchronize(result.device)
    started = time.perf_counter()
    result = compute(name)
    synchronize(result.device)
    return result, time.perf_counter() - started
