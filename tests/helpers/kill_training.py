"""Starts a training twenty times and kills it at random moments: `python kill_training.py LATENTS RUN STEPS`.

Each session dies some steps after its start, at any moment of a step, of a write or of the start itself. It is a
program of its own: its children are forked, with torch imported, so that they train at once. The tests' own process
cannot fork like that after just any other test: some start threads of autograd, which do not survive it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
from pathlib import Path

import torch
from train_helpers import options, run_to_end

from mpdit_core.reporting import Event, Step
from mpdit_core.training import TrainOptions, train


def train_and_die(wanted: TrainOptions, steps: int, seconds: float) -> None:
    """Trains; SIGKILL comes `seconds` after so many steps."""
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
    sys.exit("it came to its end: make the run longer")


if __name__ == "__main__":
    wanted = options(Path(sys.argv[1]), Path(sys.argv[2]), steps=int(sys.argv[3]))
    # torch imports its compiler, seconds of it, when an optimizer is first made: here, once, and not in every child.
    run_to_end(options(Path(sys.argv[1]), Path(sys.argv[2]).with_name("warm-up"), steps=1))
    fork, rng = multiprocessing.get_context("fork"), random.Random(0)
    for _ in range(20):
        child = fork.Process(target=train_and_die, args=(wanted, rng.randint(0, 16), rng.uniform(0, 0.06)))
        child.start()
        child.join()
        if child.exitcode != -signal.SIGKILL:
            sys.exit(f"a session ended with {child.exitcode}")
