"""Training runs for tests; a module of its own, so that a fork server's children can import it by name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from mpdit_core.training.job import TrainOptions, train

QUICK = ("preview.every=0", "train.checkpoint_every=4")


def options(latents: Path, run: Path, *assignments: str, **more) -> TrainOptions:
    """The preset `tiny` without previews, a checkpoint every 4 steps."""
    return TrainOptions(
        preset="tiny", latents=latents, run=run, assignments=(*QUICK, *assignments), device="cpu", **more
    )


def run_to_end(wanted: TrainOptions) -> list:
    """All events of a run."""
    torch.set_num_threads(1)
    return list(train(wanted))


def run_group(code: str, *arguments: object, size: int = 2) -> tuple[list[int], list[tuple[str, str]]]:
    """Python `code` in `size` processes of one group, the rank its last argument: (exit codes, (stdout, stderr))."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    group = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments), str(rank)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=90) for process in group]
    finally:
        for process in group:
            process.kill()
    return [process.returncode for process in group], said
