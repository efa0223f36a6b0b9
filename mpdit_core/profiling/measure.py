"""Running a model on this machine: latency, images/s, achieved FLOP/s, and where the time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mpdit_core.model.compute import count
from mpdit_core.model.transformer import MPDiT
from mpdit_core.profiling.parts import parts_table, profile_parts
from mpdit_core.profiling.targets import Target
from mpdit_core.reporting import Event, Note, Progress, Table, Warn
from mpdit_core.runtime.device import matmul_rate, select_device, synchronize
from mpdit_core.runtime.precision import is_fast_in_bfloat16

SECONDS = 2.0  # of repeats for each figure, after the warm-up
REPEATS = (5, 200)  # least and most
PASSES = ("forward", "training")


def matmul_tflops(device_name: str) -> float:
    """This device's own rate of large matrix products (`matmul_rate`), in the type that `measure` uses."""
    device = select_device(device_name)
    dtype = torch.bfloat16 if is_fast_in_bfloat16(device) else torch.float32
    return matmul_rate(device, dtype) / 1e12


def measure(target: Target, batch_size: int, *, device: str) -> Iterator[Event]:
    """Times forward and training passes, eager and compiled; yields tables, returns the numbers (seconds).

    Weights are random: the time does not depend on them. A compiler that is missing or fails costs its lines and a
    warning, nothing else.
    """
    place = select_device(device)
    low = is_fast_in_bfloat16(place)
    rate = matmul_tflops(device)
    yield Note(text=f"measuring {target.name} on {_describe(place)}, batch {batch_size}, "
               f"{'bfloat16' if low else 'float32'}; its large matrix products reach {rate:.3g} TFLOP/s")  # fmt: skip
    with torch.device(place):
        model = MPDiT(target.model)
        inputs = _inputs(target, batch_size)
    counted = count(target.model)
    parts = {
        what: profile_parts(model, _work(model, inputs, low=low, training=what == "training"), place) for what in PASSES
    }
    rows, figures = [], []
    done = 0
    for mode in ("eager", "compiled"):
        if mode == "compiled":
            model.compile_blocks()
        for what, macs in zip(PASSES, (counted.macs, counted.training_macs), strict=True):
            work = _work(model, inputs, low=low, training=what == "training")
            if place.type == "cuda":
                torch.cuda.reset_peak_memory_stats(place)
            try:
                times = _times(work, place)
            except Exception as error:  # the compiler raises all kinds of errors
                if mode == "eager":
                    raise
                yield Warn(text=f"torch.compile does not work here: {type(error).__name__}: {_first_line(error)}")
                break
            figure = _figure(times, batch_size, macs, rate) | {"mode": mode, "pass": what}
            if place.type == "cuda":
                figure["peak_bytes"] = torch.cuda.max_memory_allocated(place)
            figures.append(figure)
            rows.append(_row(figure))
            done += 1
            yield Progress(task="measure", done=done, total=4, unit="figures")
    yield Table(
        title=f"{target.name}: measured on {_describe(place)}, batch {batch_size}",
        columns=["pass", "median ms", "10–90 %", "images/s", "GFLOP/s", "of matmul"],
        rows=rows,
        note="of matmul: share of the rate that this device's large matrix products reach. FLOPs by the true count.",
    )
    for what in PASSES:
        yield parts_table(target.name, target.model, parts[what], batch_size, training=what == "training")
    return {"name": target.name, "device": _describe(place), "batch_size": batch_size, "matmul_tflops": rate,
            "figures": figures, "parts": parts}  # fmt: skip


def _inputs(target: Target, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    model = target.model
    x_t = torch.randn(batch_size, model.channels, model.input_size, model.input_size)
    return x_t, torch.rand(batch_size), torch.randint(model.num_classes, (batch_size,))


def _work(model: MPDiT, inputs: tuple[Tensor, Tensor, Tensor], *, low: bool, training: bool) -> Callable[[], object]:
    """One pass as a function without arguments. Training: forward, loss and backward, without the optimizer."""
    device = inputs[0].device.type

    def cast() -> AbstractContextManager:
        return torch.autocast(device, dtype=torch.bfloat16) if low else nullcontext()

    def forward() -> None:
        model.eval()
        with torch.no_grad(), cast():
            model(*inputs)

    def train() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        with cast():
            loss = (model(*inputs).float() - inputs[0]).square().mean()
        loss.backward()

    return train if training else forward


def _times(work: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each repeat, after two for warming up."""
    for _ in range(2):
        work()
    synchronize(device)
    times: list[float] = []
    while len(times) < REPEATS[0] or (sum(times) < SECONDS and len(times) < REPEATS[1]):
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return times


def _figure(times: list[float], batch_size: int, macs: int, rate: float) -> dict[str, Any]:
    median = statistics.median(times)
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    flops_rate = 2 * macs * batch_size / median
    return {
        "median_seconds": median,
        "p10_seconds": deciles[0],
        "p90_seconds": deciles[-1],
        "repeats": len(times),
        "images_per_second": batch_size / median,
        "flops_per_second": flops_rate,
        "share_of_matmul": flops_rate / (rate * 1e12),
    }


def _row(figure: dict[str, Any]) -> list[str]:
    return [
        f"{figure['mode']} {figure['pass']}",
        f"{figure['median_seconds'] * 1e3:.2f}",
        f"{figure['p10_seconds'] * 1e3:.2f}–{figure['p90_seconds'] * 1e3:.2f}",
        f"{figure['images_per_second']:.4g}",
        f"{figure['flops_per_second'] / 1e9:,.4g}",
        f"{figure['share_of_matmul']:.1%}",
    ]


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
