"""Speed of training steps against the plain step, the dense DiT of the same width, and the machine's rate.

    python benchmarks/train_step.py --preset b-256 --batch-size 16 --compile both
    python benchmarks/train_step.py --preset xl-256 --batch-size 64 --device cuda --compile both

A step is a whole one: forward, backward, gradient norm, AdamW, EMA. The plain one is eager, in float32, with the memory
managed by the C library's defaults, as in a script without the toolkit. Every measurement has its own process, and so
its own peak memory. They take turns (plain, multi-patch, dense, plain, …), so all become slower if the machine does.
Shares are FLOPs of the model's matrix products (forward and backward, closed formula, nothing recomputed) / time / the
rate of one large matrix product in each type, measured in the same processes before and after the steps.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from report import in_new_process, write_result

from mpdit_core.config import ModelConfig, RunConfig
from mpdit_core.flow.loss import random_batch
from mpdit_core.model.compute import training_macs
from mpdit_core.presets import load_preset
from mpdit_core.runtime.device import matmul_rate, peak_memory, select_device, synchronize
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.precision import DTYPES, dtype_name
from mpdit_core.settings import merge, validate
from mpdit_core.training.batches import Batch
from mpdit_core.training.state.trainer import Trainer

COLUMNS = ("model", "type", "mode", "images/s", "of float32", "of bfloat16", "peak memory", "× dense", "× plain")
TYPES = ("float32", "bfloat16")
COMPILE = {"compiled": "on", "graphs": "graphs"}  # train.compile of the modes that are not eager
MODES = {
    "no": ["eager"], "yes": ["compiled"], "both": ["eager", "compiled"], "all": ["eager", "compiled", "graphs"],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A training to measure. `mode`: plain, eager, compiled or graphs."""

    preset: str
    batch_size: int
    device: str
    dense: bool = False
    mode: str = "eager"
    precision: str = "bfloat16"
    activation_checkpointing: bool = False
    deterministic: bool = True


def main() -> None:
    arguments = parse()
    rows = []
    for preset in arguments.preset or ["b-256"]:
        plain = Variant(
            preset=preset, batch_size=arguments.batch_size, device=select_device(arguments.device).type, mode="plain",
            precision="float32", activation_checkpointing=arguments.activation_checkpointing,
            deterministic=arguments.deterministic,
        )  # fmt: skip
        runs: dict[Variant, list[dict[str, Any]]] = {plain: []}
        for mode, dense in itertools.product(MODES[arguments.compile], (False, True)):
            runs[replace(plain, mode=mode, dense=dense, precision=arguments.precision)] = []
        for _ in range(arguments.rounds):
            for variant, taken in runs.items():
                taken.append(in_new_process(measure, variant, arguments.steps))
        rows += summarise(runs)
    show(rows)
    name = "-".join(arguments.preset or ["b-256"])
    print(write_result(f"train-step-{name}", {"command": sys.argv[1:], "rows": rows}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="repeatable; default b-256")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--steps", type=int, default=3, help="timed steps of a process, after one untimed (compiled and graphs: two)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of each model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--compile", default="no", choices=list(MODES))
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--no-deterministic", dest="deterministic", action="store_false", help="for GPUs")
    return parser.parse_args()


def make_step(variant: Variant) -> tuple[Trainer, Batch]:
    """A trainer of the model, and a batch on its device."""
    config = load_preset(variant.preset)
    model = config.model.dense() if variant.dense else config.model
    train = {
        "batch_size": variant.batch_size, "precision": variant.precision, "compile": COMPILE.get(variant.mode, "off"),
        "activation_checkpointing": variant.activation_checkpointing,
        "deterministic": variant.deterministic and variant.mode != "plain",
    }  # fmt: skip
    config = validate(RunConfig, merge(config.model_dump(), {"model": model.model_dump(), "train": train}))
    is_left_alone = variant.mode == "plain" and variant.device == "cpu"
    device = torch.device("cpu") if is_left_alone else select_device(variant.device)
    trainer = Trainer(config, total_steps=1000, device=device, world=World())
    torch.manual_seed(0)
    return trainer, make_batch(model, variant.batch_size).to(device)


def make_batch(model: ModelConfig, size: int, *needed: str, teacher_features: int = 0) -> Batch:
    """A batch of random values, with the optional fields `needed`."""
    return Batch(**vars(random_batch(model, needed, images=size, teacher_features=teacher_features)))


def measure(variant: Variant, steps: int) -> dict[str, Any]:
    """Times `steps` steps of one model, in this process."""
    trainer, batch = make_step(variant)
    device = trainer.device
    rates = {name: [matmul_rate(device, DTYPES[name])] for name in TYPES}
    for _ in range(2 if variant.mode in COMPILE else 1):
        trainer.step(batch)
    times = seconds_of_steps(trainer, batch, steps)
    for name in TYPES:
        rates[name].append(matmul_rate(device, DTYPES[name]))
    return {
        "seconds": times,
        "matmul_flops": rates,
        "training_flops_per_image": 2 * training_macs(trainer.config.model),
        "peak_memory_bytes": peak_memory(device),
        "dtype": dtype_name(trainer.model.dtype),
        "device": device.type,
        "batch_size": variant.batch_size,
    }


def seconds_of_steps(trainer: Trainer, batch: Batch, steps: int) -> list[float]:
    """Seconds of each step; on a GPU from the end of one to the end of the next, because the host runs ahead of it."""
    if trainer.device.type != "cuda":
        times = []
        for _ in range(steps):
            started = time.perf_counter()
            trainer.step(batch)
            synchronize(trainer.device)
            times.append(time.perf_counter() - started)
        return times
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    ends[0].record()
    for end in ends[1:]:
        trainer.step(batch)
        end.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) / 1000 for first, second in itertools.pairwise(ends)]


def summarise(runs: dict[Variant, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each variant; the first is the plain one. The peak rate is the best of all processes."""
    peaks = {
        name: max(r for taken in runs.values() for run in taken for r in run["matmul_flops"][name]) for name in TYPES
    }
    speeds = {
        variant: taken[0]["batch_size"] / statistics.median(s for run in taken for s in run["seconds"])
        for variant, taken in runs.items()
    }
    plain = next(iter(speeds.values()))
    rows = []
    for variant, taken in runs.items():
        dense = speeds.get(replace(variant, dense=True))
        flops = speeds[variant] * taken[0]["training_flops_per_image"]
        rows.append(
            {
                "model": f"dense of {variant.preset}" if variant.dense else variant.preset,
                "dtype": taken[0]["dtype"],
                "mode": variant.mode,
                "images_per_second": speeds[variant],
                **{f"share_of_{name}": flops / peaks[name] for name in TYPES},
                **{f"matmul_{name}_gflops": peaks[name] / 1e9 for name in TYPES},
                "peak_memory_bytes": max(run["peak_memory_bytes"] for run in taken),
                "times_dense": speeds[variant] / dense if dense and not variant.dense else None,
                "times_plain": None if variant.dense else speeds[variant] / plain,
                "runs": taken,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print("  ".join(f"{column:>14}" for column in COLUMNS))
    for row in rows:
        ratios = (f"{row[key]:.2f}" if row[key] else "" for key in ("times_dense", "times_plain"))
        cells = (
            row["model"], row["dtype"], row["mode"], f"{row['images_per_second']:.2f}",
            *(f"{row[f'share_of_{name}']:.1%}" for name in TYPES),
            f"{row['peak_memory_bytes'] / 2**30:.2f} GiB", *ratios,
        )  # fmt: skip
        print("  ".join(f"{cell:>14}" for cell in cells))
    gflops = " and ".join(f"{rows[0][f'matmul_{name}_gflops']:.4g} GFLOP/s in {name}" for name in TYPES)
    print(f"large matrix products: {gflops}")


if __name__ == "__main__":
    main()
