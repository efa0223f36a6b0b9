"""Trainings for processes of a test; a separate module, so that the children of `launch.SERVER` find it by name."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import torch
from launch import wait_until
from train_helpers import options

from mpdit_core.errors import UserError
from mpdit_core.reporting import Event, Reporter, Step, Warning
from mpdit_core.training import TrainOptions, train


def train_and_die(wanted: TrainOptions, steps: int, seconds: float) -> None:
    """Trains until a SIGKILL `seconds` after step `steps`: in the middle of a step, of a write, or of the start."""
    death = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    left = steps

    def watch(event: Event) -> None:
        nonlocal left
        left -= isinstance(event, Step)
        if left == 0 and isinstance(event, Step):
            death.start()

    torch.set_num_threads(1)
    if steps == 0:
        death.start()
    train(wanted, report=watch)
    sys.exit("the run ended before the kill: make it longer")


def torchrun(words: list[str]) -> None:
    """Runs torchrun itself, which starts its own processes."""
    from torch.distributed.run import main

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    main(words)


def last_checkpoint_fails(latents: Path, run: Path) -> int:
    """Trains while a file has the name of the folder of checkpoints, so that none can be written."""

    def watch(event: Event) -> None:
        if isinstance(event, Step) and event.step == 1 and os.environ["RANK"] == "0":
            (run / "checkpoints").write_text("in the way")

    return _refused(options(latents, run, steps=2), watch)


def one_part_fails(latents: Path, run: Path) -> int:
    """Trains, sharded, while process 1 cannot write after the first checkpoint."""

    def watch(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2 and os.environ["RANK"] == "1":
            wait_until((run / "checkpoints" / "step-0000001").exists)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        if isinstance(event, Warning):
            print(json.dumps([event.code, event.text]), flush=True)

    return _refused(options(latents, run, "train.checkpoint_every=1", "train.parallel=fsdp", steps=3), watch)


def _refused(wanted: TrainOptions, watch: Reporter) -> int:
    """Trains, and prints how the training was refused as the last line."""
    try:
        train(wanted, report=watch)
    except UserError as error:
        print(json.dumps([error.code, error.what]), flush=True)
        return 2
    return 0
