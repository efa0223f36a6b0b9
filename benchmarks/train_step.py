"""Speed of training steps: images/s, model-FLOP utilisation and peak memory, against the dense DiT of the same width.

    python benchmarks/train_step.py --preset b-256 --batch-size 16
    python benchmarks/train_step.py --preset xl-256 --batch-size 64 --device cuda --compile both

A step is the whole of it: forward, backward, gradient norm, AdamW, EMA. Every measurement is a process of its own, so
that its peak memory is its own too, and they take turns (multi-patch, dense, multi-patch, …), so that a machine that
slows down slows all of them. Utilisation = FLOPs of the model's matrix products (forward and backward, closed formula,
nothing recomputed) / time / the rate of one large matrix product measured in the same process, before and after the
steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from report import write_result

COLUMNS = ("model", "mode", "images/s", "utilisation", "peak memory", "× dense")


def main() -> None:
    arguments = parse()
    if arguments.one:
        print(
            json.dumps(
                measure(arguments.preset[0], arguments, dense=arguments.dense, compiled=arguments.one == "compiled")
            )
        )
        return
    modes = {"no": ["eager"], "yes": ["compiled"], "both": ["eager", "compiled"]}[arguments.compile]
    rows = []
    for preset in arguments.preset:
        for mode in modes:
            pair: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
            for _ in range(arguments.rounds):
                for dense in (False, True):
                    pair[dense].append(in_a_process(preset, mode, dense, arguments))
            rows += summarise(preset, mode, pair)
    show(rows)
    print(write_result(f"train-step-{'-'.join(arguments.preset)}", {"command": sys.argv[1:], "rows": rows}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="repeatable; default b-256")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--steps", type=int, default=3, help="timed steps of a process, after one (compiled: two) untimed"
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of each model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--compile", default="no", choices=["no", "yes", "both"])
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--one", choices=["eager", "compiled"], help=argparse.SUPPRESS)
    parser.add_argument("--dense", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.preset = arguments.preset or ["b-256"]
    return arguments


def in_a_process(preset: str, mode: str, dense: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", mode, "--preset", preset, "--device", arguments.device]
    command += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
    command += ["--precision", arguments.precision]
    command += ["--dense"] if dense else []
    command += ["--activation-checkpointing"] if arguments.activation_checkpointing else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(preset: str, arguments: argparse.Namespace, *, dense: bool, compiled: bool) -> dict[str, Any]:
    """Times `arguments.steps` steps of one model here."""
    import torch

    from mpdit_core.config import RunConfig
    from mpdit_core.model.compute import training_macs
    from mpdit_core.presets import load_preset
    from mpdit_core.runtime.device import matmul_rate, peak_memory, select_device, synchronize
    from mpdit_core.runtime.distributed import World
    from mpdit_core.runtime.precision import dtype_name
    from mpdit_core.settings import merge, validate
    from mpdit_core.training.batches import Batch
    from mpdit_core.training.state.trainer import Trainer

    config = load_preset(preset)
    model = config.model.dense() if dense else config.model
    size = arguments.batch_size
    train = {
        "batch_size": size, "precision": arguments.precision, "compile": "on" if compiled else "off",
        "activation_checkpointing": arguments.activation_checkpointing,
    }  # fmt: skip
    config = validate(RunConfig, merge(config.model_dump(), {"model": model.model_dump(), "train": train}))
    device = select_device(arguments.device)
    trainer = Trainer(config, total_steps=1000, device=device, world=World())
    torch.manual_seed(0)
    shape = (size, model.channels, *model.input_size)
    batch = Batch(torch.randn(shape), torch.randn(shape), torch.rand(size), torch.arange(size) % model.num_classes)
    batch = batch.to(device)
    dtype = trainer.model.dtype
    rates = [matmul_rate(device, dtype)]
    for _ in range(2 if compiled else 1):
        trainer.step(batch)
    times = []
    for _ in range(arguments.steps):
        synchronize(device)
        started = time.perf_counter()
        trainer.step(batch)
        synchronize(device)
        times.append(time.perf_counter() - started)
    rates.append(matmul_rate(device, dtype))
    return {
        "seconds": times,
        "matmul_flops": rates,
        "training_flops_per_image": 2 * training_macs(config.model),
        "peak_memory_bytes": peak_memory(device),
        "dtype": dtype_name(dtype),
        "device": device.type,
        "batch_size": size,
    }


def summarise(preset: str, mode: str, pair: dict[bool, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for the preset and one for its dense DiT; the best rate seen by either is the peak of both."""
    peak = max(rate for runs in pair.values() for run in runs for rate in run["matmul_flops"])
    rows = []
    for dense, runs in pair.items():
        seconds = statistics.median(s for run in runs for s in run["seconds"])
        speed = runs[0]["batch_size"] / seconds
        rows.append(
            {
                "model": f"dense of {preset}" if dense else preset,
                "mode": mode,
                "images_per_second": speed,
                "utilisation": speed * runs[0]["training_flops_per_image"] / peak,
                "matmul_gflops": peak / 1e9,
                "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
                "runs": runs,
            }
        )
    rows[0]["times_dense"] = rows[0]["images_per_second"] / rows[1]["images_per_second"]
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print("  ".join(f"{column:>16}" for column in COLUMNS))
    for row in rows:
        cells = (
            row["model"], row["mode"], f"{row['images_per_second']:.2f}", f"{row['utilisation']:.1%}",
            f"{row['peak_memory_bytes'] / 2**30:.2f} GiB", f"{row['times_dense']:.2f}" if "times_dense" in row else "",
        )  # fmt: skip
        print("  ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
