"""CUDA graphs: a computation is recorded once, and launched whole from then on.

A network has hundreds of kernels, and launching one can take longer than running it: for small networks, small batches
and slow hosts. A graph has one launch. `torch.cuda.make_graphed_callables` records the backward pass of one module at
a time; here whole functions are recorded, backward passes included.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mpdit_core.errors import UserError

WARM_UPS = 3  # calls before recording: they compile, choose kernels, and allocate what stays

Output = TypeVar("Output")


class Recorded(Generic[Output]):
    """`function`, recorded at the first call with tensors of these shapes on a CUDA device, and replayed afterwards.

    The next call overwrites the result of a call.

    Args:
        function: of tensors on one CUDA device; it must not wait for the device, nor depend on values.
    """

    def __init__(self, function: Callable[..., Output]):
        self._function = function
        self._graphs: dict[Hashable, _Graph[Output]] = {}
        self._pool: Any = None  # memory that all graphs share, because only one runs at a time

    def __call__(self, *inputs: Tensor) -> Output:
        key = (*((x.shape, x.dtype) for x in inputs), *_settings())
        if key not in self._graphs:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._graphs[key] = _Graph(self._function, inputs, self._pool)
        return self._graphs[key].replay(inputs)


class _Graph(Generic[Output]):
    """One recording, with the tensors that it reads and the result that it writes."""

    def __init__(self, function: Callable[..., Output], inputs: Sequence[Tensor], pool: Any):
        self.inputs = [x.clone() for x in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):  # other threads may go on
            self.output = function(*self.inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Output:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.output


def require_cuda(device: torch.device, *, remedy: str) -> None:
    """Raises `UserError` (`no-cuda-graphs`) for a device of another kind."""
    if device.type != "cuda":
        raise UserError(
            f"there are no CUDA graphs on the device {device.type}",
            code="no-cuda-graphs",
            expected="a CUDA device",
            remedy=remedy,
        )


def _settings() -> tuple[Hashable, ...]:
    """Settings of torch that change which kernels run."""
    in_bfloat16 = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    return in_bfloat16, torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled()
