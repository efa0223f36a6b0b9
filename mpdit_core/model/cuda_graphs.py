"""CUDA graphs: a computation is recorded once, and launched whole from then on.

A network has hundreds of kernels, and launching one can take longer than running it: for small networks, small batches
and slow hosts. A graph has one launch. `torch.cuda.make_graphed_callables` records the backward pass of one module at
a time; here whole functions are recorded, backward passes included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mpdit_core.errors import UserError
from mpdit_core.model.transformer import MPDiT

WARM_UPS = 3  # calls before recording: they compile, choose kernels, and allocate what stays
MAX_RECORDINGS = 8  # of one function; a further one replaces the oldest

Output = TypeVar("Output")
_recording = threading.Lock()  # a process can record one graph at a time


class Recorded(Generic[Output]):
    """`function`, recorded at the first call with inputs of these shapes and types in these modes, then replayed.

    The result is valid only until the next call, so only one thread may use it at a time.

    Args:
        function: of tensors on one CUDA device. It must not wait for the device. Its Python code runs only in the first
            call, `WARM_UPS + 1` times; a replay repeats nothing but its kernels.
    """

    def __init__(self, function: Callable[..., Output]):
        self._function = function
        self._graphs: dict[Hashable, _Graph[Output]] = {}
        self._pool: Any = None  # memory that all graphs share, because only one runs at a time

    def __call__(self, *inputs: Tensor) -> Output:
        key = (*((x.shape, x.dtype) for x in inputs), *_modes())
        with torch.cuda.device(inputs[0].device):
            if key not in self._graphs:
                if len(self._graphs) == MAX_RECORDINGS:
                    self._graphs.pop(next(iter(self._graphs)))
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                with _recording:
                    self._graphs[key] = _Graph(self._function, inputs, self._pool)
            return self._graphs[key].replay(inputs)


class RecordedNetwork:
    """`network`, recorded as it is evaluated without gradients. Threads may share it.

    It is evaluated as it is where gradients are wanted.
    """

    def __init__(self, network: MPDiT):
        self.network = network
        self._recorded = Recorded(network)
        self._lock = threading.Lock()

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.network(x_t, t, labels)
        with self._lock:
            return self._recorded(x_t, t, labels).clone()


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
        try:
            # "thread_local": other threads may use the device meanwhile
            with torch.cuda.graph(self.graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                self.output = function(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise UserError(
                f"the computation cannot be recorded as a CUDA graph: {error}",
                code="cannot-record",
                expected="operations that do not wait for the GPU",
                remedy="--set train.compile=on for training, --compile on for samples",
            ) from error

    def replay(self, inputs: Sequence[Tensor]) -> Output:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.output


def require_cuda_graphs(device: torch.device, *, remedy: str) -> None:
    """Raises `UserError` (`no-cuda-graphs`) unless `device` is a CUDA device."""
    if device.type != "cuda":
        raise UserError(
            f"there are no CUDA graphs on the device {device.type}",
            code="no-cuda-graphs",
            expected="a CUDA device",
            remedy=remedy,
        )


def _modes() -> tuple[Hashable, ...]:
    """The modes of torch in which a function needs a recording of its own."""
    in_bfloat16 = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    return in_bfloat16, torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled()
