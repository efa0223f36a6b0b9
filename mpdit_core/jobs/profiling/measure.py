"""Running a model on this machine: latency, images/s, achieved FLOP/s, and where the time goes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from mpdit_core.device import is_fast_in_bfloat16, matmul_rate, select_device
from mpdit_core.events import Event, Note, Progress, Table, Warn
from mpdit_core.jobs.profiling.targets import Target
from mpdit_core.model.compute import Kind, count
from mpdit_core.model.transformer import MPDiT

SECONDS = 2.0  # of repeats for each figure, after the warm-up
REPEATS = (5, 200)  # least and most
RANGE = "mpdit/"

# module of the network (by the end of its name) -> kind of work. The attention's own products are what its module
# takes beyond its two linear layers.
PARTS: dict[str, Kind] = {
    "attention": "attention",
    "attention.qkv": "projections",
    "attention.out": "projections",
    "mlp": "mlp",
    "upsample": "upsampling",
    "patch_embedding": "patches",
    "skip": "patches",
    "modulation": "conditioning",
    "class_embedding": "conditioning",
    "time_embedding": "time",
    "head.linear": "output",
}


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
    parts = _profile(model, _work(model, inputs, low=low, training=False), place)
    rows, figures = [], []
    done = 0
    for mode in ("eager", "compiled"):
        if mode == "compiled":
            model.compile_blocks()
        for what, macs in (("forward", counted.macs), ("training", counted.training_macs)):
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
    yield _parts_table(target, parts, batch_size)
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
    _wait(device)
    times: list[float] = []
    while len(times) < REPEATS[0] or (sum(times) < SECONDS and len(times) < REPEATS[1]):
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


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


def _profile(model: MPDiT, work: Callable[[], object], device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds of one eager forward pass by stage (`stage 0`, …, `outside`) and kind of work, by torch's profiler."""
    handles = _mark(model)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    repeats = 5
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler's library writes its log among the tables
    try:
        with torch_profile(activities=activities) as profiler:
            for _ in range(repeats):
                work()
            _wait(device)
    finally:
        for handle in handles:
            handle.remove()
    seconds: dict[str, dict[str, float]] = {}
    for event in profiler.key_averages():
        if not event.key.startswith(RANGE):
            continue
        micro = event.device_time_total if device.type == "cuda" else event.cpu_time_total
        stage, _, kind = event.key.removeprefix(RANGE).partition("/")
        row = seconds.setdefault(stage, {})
        row[kind] = max(row.get(kind, 0.0), micro / 1e6 / repeats)  # CPU's and GPU's view of one range
    for row in seconds.values():
        if "attention" in row:  # the module holds its linear layers
            row["attention"] -= row.get("projections", 0.0)
        if "all" in row:
            row["rest"] = row["all"] - sum(value for kind, value in row.items() if kind != "all")
    return dict(sorted(seconds.items(), key=lambda item: (item[0] == "outside", item[0])))


def _mark(model: nn.Module) -> list[Any]:
    """Hooks that put every part of `PARTS`, and every stage, into a range of the profiler."""
    handles = []
    for name, module in model.named_modules():
        stage = f"stage {name.split('.')[1]}" if name.startswith("stages.") else "outside"
        matches = [part for part in PARTS if name == part or name.endswith(f".{part}")]
        if name.startswith("stages.") and name.count(".") == 1:
            label = f"{RANGE}{stage}/all"
        elif matches:
            label = f"{RANGE}{stage}/{PARTS[max(matches, key=len)]}"
        else:
            continue
        open_ranges: list[Any] = []

        def enter(_module: nn.Module, _inputs: Any, label: str = label, stack: list[Any] = open_ranges) -> None:
            span = record_function(label)
            span.__enter__()
            stack.append(span)

        def leave(_module: nn.Module, _inputs: Any, _output: Any, stack: list[Any] = open_ranges) -> None:
            stack.pop().__exit__(None, None, None)

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    return handles


def _parts_table(target: Target, parts: dict[str, dict[str, float]], batch_size: int) -> Table:
    counted = count(target.model)
    total = sum(row.get("all", sum(row.values())) for row in parts.values())
    rows = []
    for stage, row in parts.items():
        inside = [s.by_kind for s in counted.stages]
        macs: dict[str, int] = {kind: n - sum(each[kind] for each in inside) for kind, n in counted.by_kind.items()}
        if stage != "outside":
            macs = {**inside[int(stage.split()[1])]}
        for kind, seconds in row.items():
            if kind == "all" or seconds <= 0:
                continue
            flops = 2 * batch_size * macs.get(kind, 0)
            speed = f"{flops / seconds / 1e9:,.4g}" if flops else "–"
            rows.append([f"{stage} {kind}", f"{seconds * 1e3:.3f}", f"{seconds / total:.1%}", speed])
    return Table(
        title=f"{target.name}: one eager forward pass by stage and kind of work (torch.profiler)",
        columns=["part", "ms", "share", "GFLOP/s"],
        rows=rows,
        note="rest: norms, modulation of the tokens, residuals, moving of memory. The profiler slows small models.",
    )


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
