"""The time that a pass spends in each stage and kind of work, forward and backward, by torch's profiler.

Every part of the network is in a range of the profiler while it runs eagerly (a compiled block is one piece).
A backward operation belongs to the part whose forward operation has the same sequence number.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from mpdit_core.model.compute import KINDS, Kind, operations
from mpdit_core.model.transformer import MPDiT
from mpdit_core.profiling.results import PartTime
from mpdit_core.runtime.device import synchronize

REPEATS = 7
RANGE = "mpdit/"
PASS = "mpdit-pass"
FORWARD_SCOPE = 0  # scope of an operation; a node of the backward pass has 1, a range 7
BACKWARD = "autograd::engine::evaluate_function"

# Module of the network (by the end of its name) → kind of work. The time of a part does not include the parts inside
# it: the time of `attention` is the time of its two products.
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


def part_times(
    model: MPDiT, work: Callable[[], object], batch_size: int, *, device: torch.device, training: bool
) -> tuple[PartTime, ...]:
    """The parts of a pass of `model`, in the order of the stages and of `KINDS`; `work` is one pass."""
    taken = _profile(model, work, device)
    macs: dict[str, int] = defaultdict(int)
    for operation in operations(model.config):
        stage = "outside" if operation.stage is None else f"stage {operation.stage}"
        macs[f"{stage}/{operation.kind}"] += operation.macs + (operation.backward_macs if training else 0)
    return tuple(
        PartTime(stage=stage, kind=kind, flops=2 * batch_size * macs[f"{stage}/{kind}"], **deciles(seconds))
        for stage in [*(f"stage {i}" for i in range(len(model.config.stages))), "outside"]
        for kind in [*KINDS, "rest"]
        if (seconds := taken.get(f"{stage}/{kind}"))
    )


def _profile(model: nn.Module, work: Callable[[], object], device: torch.device) -> dict[str, list[float]]:
    """Seconds that each part, `stage/kind`, takes in each of several passes."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler's library prints its log
    marked = _mark(model)
    try:
        work()
        synchronize(device)
        with torch_profile(activities=activities) as profiler:
            for _ in range(REPEATS):
                with record_function(PASS):
                    work()
                    synchronize(device)
    finally:
        for module in marked:
            del module.forward  # the method of the class is called again
    return _seconds(list(profiler.events() or []), on_gpu=device.type == "cuda")


def deciles(seconds: list[float]) -> dict[str, float]:
    """The fields of a `Timing` over these repeats."""
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return {"median_seconds": statistics.median(seconds), "p10_seconds": tenths[0], "p90_seconds": tenths[-1]}


def _mark(model: nn.Module) -> list[nn.Module]:
    """Puts the calls of every part of the network, and of every stage, into a range of the profiler."""
    marked = []
    for name, module in model.named_modules():
        part = _part(name)
        if part is not None:
            module.forward = record_function(f"{RANGE}{part}")(module.forward)
            marked.append(module)
    return marked


def _part(module: str) -> str | None:
    """`stage 0/mlp` for the module `stages.0.blocks.3.mlp`; None for a module inside another part."""
    place, _, inside = module.removeprefix("stages.").partition(".")
    stage = f"stage {place}" if module.startswith("stages.") else "outside"
    if module.startswith("stages.") and not inside:
        return f"{stage}/rest"
    if module.startswith("time_embedding."):  # all its layers are one part
        return None
    return next((f"{stage}/{kind}" for end, kind in PARTS.items() if f".{module}".endswith(f".{end}")), None)


def _seconds(events: list[Any], *, on_gpu: bool) -> dict[str, list[float]]:
    """Seconds of each part in each pass, without the parts inside it."""
    events = sorted((e for e in events if e.device_type == DeviceType.CPU), key=lambda e: e.time_range.start)
    starts = [event.time_range.start for event in events if event.name == PASS]
    taken: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(starts))
    part_of: dict[int, str | None] = {}  # sequence number → part; an operation without a node has the next one's number

    def add(part: str, event: Any, sign: int = 1) -> None:
        this_pass = max(sum(start <= event.time_range.start for start in starts) - 1, 0)
        total = event.device_time_total if on_gpu else event.cpu_time_total
        taken[part][this_pass] += sign * total / 1e6

    for event in events:
        if event.name.startswith(RANGE):
            add(event.name.removeprefix(RANGE), event)
            outer = _innermost(event.cpu_parent)
            if outer is not None:
                add(outer, event, sign=-1)
        elif event.scope == FORWARD_SCOPE and event.sequence_nr >= 0 and not event.name.startswith(BACKWARD):
            part_of[event.sequence_nr] = _innermost(event)
    for event in events:
        if event.name.startswith(BACKWARD):
            add(part_of.get(event.sequence_nr) or "outside/rest", event)
    return taken


def _innermost(event: Any) -> str | None:
    """The innermost part that contains an event."""
    while event is not None:
        if event.name.startswith(RANGE):
            return event.name.removeprefix(RANGE)
        event = event.cpu_parent
    return None
