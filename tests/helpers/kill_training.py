"""Starts a training twenty times and kills it at random moments: `python kill_training.py LATENTS RUN STEPS`.

A program of its own: its children are forked, with torch imported, so that they train at once. The tests' own process
cannot fork like that after just any other test: some start threads of autograd, which do not survive it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

from train_helpers import options, run_to_end

if __name__ == "__main__":
    wanted = options(Path(sys.argv[1]), Path(sys.argv[2]), steps=int(sys.argv[3]))
    # torch imports its compiler, seconds of it, when an optimizer is first made: here, once, and not in every child.
    run_to_end(options(Path(sys.argv[1]), Path(sys.argv[2]).with_name("warm-up"), steps=1))
    fork, rng = multiprocessing.get_context("fork"), random.Random(0)
    for kill in range(20):
        child = fork.Process(target=run_to_end, args=(wanted,))
        child.start()
        child.join(rng.uniform(0.1, 0.5))
        if child.exitcode is not None:
            sys.exit(f"it came to its end after {kill} kills: make the run longer")
        os.kill(child.pid, signal.SIGKILL)
        child.join()
