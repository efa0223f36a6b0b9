"""Speed of drawing batches: images/s of the random numbers of training, against a generator for each sample.

    python benchmarks/batches.py
    python benchmarks/batches.py --threads 1

It compares `RandomTable`, as training uses it, with the method before it: a torch generator for each sample, which
draws time, flip, label drop, noise and a posterior sample. For a deterministic autoencoder (also `pixels`), the table
draws no posterior sample. The two take turns of some calls, and the best call of each counts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from report import write_result

from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.seeding import RandomTable, generator

LATENTS = (
    ("pixels", (3, 32, 32), 1),
    ("mean", (16, 64, 64), 1),
    ("mean+std", (4, 32, 32), 2),
    ("mean+std", (16, 64, 64), 2),
)
TURNS = 5
CALLS = 6  # of one method in a turn; threads of the other one still wait actively during the first
NUMBERS_PER_BATCH = 1 << 23


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    select_device("cpu")  # as a training does; the process then keeps the memory that it frees
    rows = [compare(stores, shape, draws, threads) for stores, shape, draws in LATENTS]
    print(write_result("batches", {"threads": threads, "rows": rows}))


def compare(stores: str, shape: tuple[int, int, int], draws: int, threads: int) -> dict[str, object]:
    size = min(1024, NUMBERS_PER_BATCH // math.prod(shape))
    table = RandomTable(0, "batches", uniforms=3, normals=draws * math.prod(shape), threads=threads)
    before, now = fastest(lambda: generators(size, shape), lambda: table.rows(size, 2 * size))
    row = {
        "stores": stores,
        "latents": list(shape),
        "batch_size": size,
        "images_per_second": size / now,
        "generators_images_per_second": size / before,
        "ratio": before / now,
    }
    print(f"{stores:>8} {'×'.join(map(str, shape)):>8}: {size / now:9.0f} images/s, {before / now:.1f} × generators")
    return row


def generators(size: int, shape: tuple[int, int, int]) -> None:
    """One generator per sample: three numbers, noise and a posterior sample."""
    own = [generator(0, "sample", 1, position) for position in range(size)]
    torch.cat([torch.randn(1, generator=g) for g in own])
    torch.stack([torch.rand(2, generator=g) for g in own])
    draws = torch.stack([torch.randn(2, *shape, generator=g) for g in own])
    draws[:, 0].contiguous()


def fastest(*works: Callable[[], object]) -> list[float]:
    """The best time of each work in seconds, of some calls in a row in each turn, after one turn as a warm-up."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(TURNS + 1):
        for work, taken in zip(works, times, strict=True):
            calls = []
            for _ in range(CALLS):
                started = time.perf_counter()
                work()
                calls.append(time.perf_counter() - started)
            taken.append(min(calls))
    return [min(taken[1:]) for taken in times]


if __name__ == "__main__":
    main()
