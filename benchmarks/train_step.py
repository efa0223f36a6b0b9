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
import json
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from report import write_result

if TYPE_CHECKING:
    from mpdit_core.training.batches import Batch
    from mpdit_core.training.state.trainer import Trainer

COLUMNS = ("model", "type", "mode", "images/s", "of float32", "of bfloat16", "peak memory", "× dense", "× plain")
TYPES = ("float32", "bfloat16")
COMPILE = {"compiled": "on", "graphs": "graphs"}  # train.compile of the modes that are not eager


class Variant(NamedTuple):
    """One row of the result. `mode`: plain, eager, compiled or graphs."""

    dense: bool
    mode: str
    precision: str


def main() -> None:
    arguments = parse()
    if arguments.one:
        print(json.dumps(measure(arguments.preset[0], arguments, dense=arguments.dense, mode=arguments.one)))
        return
    arguments.device = device_type(arguments.device)
    modes = {
        "no": ["eager"], "yes": ["compiled"], "both": ["eager", "compiled"], "all": ["eager", "compiled", "graphs"],
    }[arguments.compile]  # fmt: skip
    rows = []
    for preset in arguments.preset:
        wanted = [Variant(dense, mode, arguments.precision) for mode in modes for dense in (False, True)]
        runs: dict[Variant, list[dict[str, Any]]] = {v: [] for v in (Variant(False, "plain", "float32"), *wanted)}
        for _ in range(arguments.rounds):
            for variant, taken in runs.items():
                taken.append(in_a_process(preset, variant, arguments))
        rows += summarise(preset, runs)
    show(rows)
    print(write_result(f"train-step-{'-'.join(arguments.preset)}", {"command": sys.argv[1:], "rows": rows}))


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
    parser.add_argument("--compile", default="no", choices=["no", "yes", "both", "all"])
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--no-deterministic", dest="deterministic", action="store_false", help="for GPUs")
    parser.add_argument("--one", choices=["plain", "eager", *COMPILE], help=argparse.SUPPRESS)
    parser.add_argument("--dense", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.preset = arguments.preset or ["b-256"]
    return arguments


def device_type(name: str) -> str:
    from mpdit_core.runtime.device import select_device

    return select_device(name).type


def in_a_process(preset: str, variant: Variant, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", variant.mode, "--preset", preset, "--device", arguments.device]
    command += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
    command += ["--precision", variant.precision]
    command += ["--dense"] if variant.dense else []
    command += ["--activation-checkpointing"] if arguments.activation_checkpointing else []
    command += [] if arguments.deterministic else ["--no-deterministic"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def make_step(preset: str, arguments: argparse.Namespace, *, dense: bool, mode: str) -> tuple[Trainer, Batch]:
    """A trainer of the model, and a batch on its device."""
    import torch

    from mpdit_core.config import RunConfig
    from mpdit_core.presets import load_preset
    from mpdit_core.runtime.device import select_device
    from mpdit_core.runtime.distributed import World
    from mpdit_core.settings import merge, validate
    from mpdit_core.training.batches import Batch
    from mpdit_core.training.state.trainer import Trainer

    config = load_preset(preset)
    model = config.model.dense() if dense else config.model
    size = arguments.batch_size
    train = {
        "batch_size": size, "precision": arguments.precision, "compile": COMPILE.get(mode, "off"),
        "activation_checkpointing": arguments.activation_checkpointing,
        "deterministic": arguments.deterministic and mode != "plain",
    }  # fmt: skip
    config = validate(RunConfig, merge(config.model_dump(), {"model": model.model_dump(), "train": train}))
    is_left_alone = mode == "plain" and arguments.device == "cpu"
    device = torch.device("cpu") if is_left_alone else select_device(arguments.device)
    trainer = Trainer(config, total_steps=1000, device=device, world=World())
    torch.manual_seed(0)
    shape = (size, model.channels, *model.input_size)
    batch = Batch(torch.randn(shape), torch.randn(shape), torch.rand(size), torch.arange(size) % model.num_classes)
    return trainer, batch.to(device)


def measure(preset: str, arguments: argparse.Namespace, *, dense: bool, mode: str) -> dict[str, Any]:
    """Times `arguments.steps` steps of one model, in this process."""
    from mpdit_core.model.compute import training_macs
    from mpdit_core.runtime.device import matmul_rate, peak_memory
    from mpdit_core.runtime.precision import DTYPES, dtype_name

    trainer, batch = make_step(preset, arguments, dense=dense, mode=mode)
    device = trainer.device
    rates = {name: [matmul_rate(device, DTYPES[name])] for name in TYPES}
    for _ in range(2 if mode in COMPILE else 1):
        trainer.step(batch)
    times = seconds_of_steps(trainer, batch, arguments.steps)
    for name in TYPES:
        rates[name].append(matmul_rate(device, DTYPES[name]))
    return {
        "seconds": times,
        "matmul_flops": rates,
        "training_flops_per_image": 2 * training_macs(trainer.config.model),
        "peak_memory_bytes": peak_memory(device),
        "dtype": dtype_name(trainer.model.dtype),
        "device": device.type,
        "batch_size": arguments.batch_size,
    }


def seconds_of_steps(trainer: Trainer, batch: Batch, steps: int) -> list[float]:
    """Seconds of each step; on a GPU from the end of one to the end of the next, because the host runs ahead of it."""
    import torch

    from mpdit_core.runtime.device import synchronize

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


def summarise(preset: str, runs: dict[Variant, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each variant. The peak rate is the best of all processes."""
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
        dense = speeds.get(variant._replace(dense=True))
        flops = speeds[variant] * taken[0]["training_flops_per_image"]
        rows.append(
            {
                "model": f"dense of {preset}" if variant.dense else preset,
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
