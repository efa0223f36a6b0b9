"""Time that commands take to start, against `python -c "import torch"`: `python benchmarks/startup.py`.

Whole processes are timed, in turns, and the shortest time of each counts. The targets: 0.6 s for commands that compute
nothing with torch; for `mpdit sample` of a tiny model, until its first image is on the disk, 1.5 × the import of torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import write_result
from sample import random_model

from mpdit_core.evaluation import EvaluateOptions, evaluate
from mpdit_core.presets import load_preset

MPDIT = (sys.executable, "-m", "mpdit_cli")
MAX_SECONDS = 0.6  # target for commands without torch
MAX_TIMES = 1.5  # target for `sample`, in times of the import of torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPDIT_CACHE"] = f"{folder}/cache"
        commands = make_commands(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in commands}
        for i in range(rounds):
            for name, command in commands.items():
                times[name].append(seconds_of([word.replace("ROUND", str(i)) for word in command]))
    shortest = {name: min(taken) for name, taken in times.items()}
    rows = [row(name, seconds, shortest["import torch"]) for name, seconds in shortest.items()]
    for each in rows:
        print(f"{each['command']:>16}  {each['seconds']:6.2f} s  {each['times_torch']:5.2f} × import torch")
    print(write_result("startup", {"rounds": rounds, "rows": rows}))


def make_commands(folder: Path) -> dict[str, list[str]]:
    """Command lines by name; ROUND in them is the number of the turn."""
    model = random_model(folder / "model", load_preset("tiny"))
    records = [str(make_record(folder, n)) for n in (12, 14)]
    sample = ["sample", model, "-n", "1", "--num-steps", "1", "--device", "cpu", "--out", f"{folder}/out-ROUND"]
    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "profile-flops": [*MPDIT, "profile-flops", "--preset", "xl-256", "--quiet"],
        "eval-fid compare": [*MPDIT, "eval-fid", "--compare", *records, "--quiet"],
        "sample": [*MPDIT, *sample, "--quiet"],
    }


def make_record(folder: Path, count: int) -> Path:
    """An evaluation of a few random pictures, in the features of the digits' classifier."""
    for name, n in (("samples", count), ("reference", 16)):
        pictures = np.random.default_rng(n).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / f"{name}-{n}.npz", arr_0=pictures)
    options = EvaluateOptions(
        what=str(folder / f"samples-{count}.npz"), reference=str(folder / "reference-16.npz"), features="digits",
        metrics=("fid",), out=folder / "evals", device="cpu",
    )  # fmt: skip
    return evaluate(options).path


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def row(name: str, seconds: float, torch_seconds: float) -> dict[str, Any]:
    target = {"sample": MAX_TIMES * torch_seconds, "import torch": None}.get(name, MAX_SECONDS)
    return {"command": name, "seconds": seconds, "times_torch": seconds / torch_seconds, "target_seconds": target}


if __name__ == "__main__":
    main()
