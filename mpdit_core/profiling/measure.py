"""Measurements of a model on this machine: latency, images/s, achieved FLOP/s, and the time of each part."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from mpdit_core.model.compute import forward_macs, training_macs
from mpdit_core.model.transformer import MPDiT
from mpdit_core.profiling.parts import deciles, part_times
from mpdit_core.profiling.results import Measurement, PassTime
from mpdit_core.profiling.targets import Target
from mpdit_core.reporting import Note, Progress, Reporter, Warning, silent
from mpdit_core.runtime.device import matmul_rate, synchronize
from mpdit_core.runtime.precision import autocast, choose_dtype, dtype_name

SECONDS = 2.0  # how long each kind of pass is repeated, after the warm-up
REPEATS = (5, 200)  # smallest and largest number


def measure(target: Target, batch_size: int, *, device: torch.device, report: Reporter = silent) -> Measurement:
    """Times forward and training passes, eager and compiled.

    Where torch.compile does not work, compiled passes are missing, and a warning (`cannot-compile`) says why.
    """
    dtype = choose_dtype("auto", device, target.model)
    rate = matmul_rate(device, dtype) / 1e12
    report(
        Note(
            text=f"measuring {target.name} on {describe(device)}, batch {batch_size}, {dtype_name(dtype)}; "
            f"its large matrix products reach {rate:.3g} TFLOP/s"
        )
    )
    with torch.device(device):
        model, x_t = MPDiT(target.model), torch.randn(batch_size, target.model.channels, *target.model.input_size)
        inputs = x_t, torch.rand(batch_size), torch.randint(len(target.model.labels), (batch_size,))
    works = {"forward": lambda: _forward(model, inputs, dtype), "training": lambda: _train(model, inputs, dtype)}
    macs = {"forward": forward_macs(target.model), "training": training_macs(target.model)}
    parts = {
        name: part_times(model, work, batch_size, device=device, training=name == "training")
        for name, work in works.items()
    }
    passes: list[PassTime] = []

    def time_passes(mode: str) -> None:
        for name, work in works.items():
            seconds, peak_bytes = _repeat(work, device)
            timing = deciles(seconds)
            images_per_second = batch_size / timing["median_seconds"]
            flops_per_second = 2 * macs[name] * images_per_second
            passes.append(
                PassTime(
                    mode=mode,
                    work=name,
                    repeats=len(seconds),
                    images_per_second=images_per_second,
                    flops_per_second=flops_per_second,
                    share_of_matmul=flops_per_second / (rate * 1e12),
                    peak_bytes=peak_bytes,
                    **timing,
                )
            )
            report(Progress(task="measure", done=len(passes), total=2 * len(works), unit="passes"))

    time_passes("eager")
    try:
        model.compile_blocks()
        time_passes("compiled")
    except Exception as error:  # the compiler raises all kinds of errors
        first_line = str(error).strip().partition("\n")[0]
        text = f"torch.compile does not work here: {type(error).__name__}: {first_line}"
        report(Warning(code="cannot-compile", text=text))
    return Measurement(
        name=target.name,
        device=describe(device),
        precision=dtype_name(dtype),
        batch_size=batch_size,
        matmul_tflops=rate,
        passes=tuple(passes),
        parts=parts,
    )


@torch.no_grad()
def _forward(model: MPDiT, inputs: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> None:
    model.eval()
    with autocast(inputs[0].device, dtype):
        model(*inputs)


def _train(model: MPDiT, inputs: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> None:
    """Forward pass, loss and backward pass, without the optimizer."""
    model.train()
    model.zero_grad(set_to_none=True)
    with autocast(inputs[0].device, dtype):
        loss = (model(*inputs).float() - inputs[0]).square().mean()
    loss.backward()


def _repeat(work: Callable[[], object], device: torch.device) -> tuple[list[float], int | None]:
    """Seconds of each repeat, after a warm-up of two; and on a GPU the peak memory in bytes."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        work()
    synchronize(device)
    taken: list[float] = []
    while len(taken) < REPEATS[0] or (sum(taken) < SECONDS and len(taken) < REPEATS[1]):
        start = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return taken, torch.cuda.max_memory_allocated(device) if cuda else None


def describe(device: torch.device) -> str:
    """The name of the device, to show."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
