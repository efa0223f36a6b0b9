"""The window of images/s, and a last checkpoint that cannot be written in a group of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpdit_core.training.clock import WorkClock

WORKER = """
import json, sys
from pathlib import Path
from mpdit_core.errors import UserError
from mpdit_core.events import TrainStep
from mpdit_core.jobs.train import TrainOptions, train
latents, run, rank = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
options = TrainOptions(preset="tiny", latents=latents, run=run, device="cpu", steps=2, assignments=["preview.every=0"])
try:
    for event in train(options):
        if isinstance(event, TrainStep) and event.step == 1 and rank == "0":
            folder = run / "checkpoints"
            if folder.exists():
                folder.rmdir()
            folder.write_text("in the way")
except UserError as error:
    print(json.dumps(error.what))
    sys.exit(2)
"""


def test_pauses_do_not_count():
    seconds = 0.0
    clock = WorkClock(lambda: seconds)
    seconds = 2.0
    with clock.paused():
        seconds = 102.0
    seconds = 105.0
    assert clock.lap(10) == pytest.approx(10 / 5)
    seconds = 109.0  # the pause belongs to its window only
    assert clock.lap(18) == pytest.approx(8 / 4)
    clock.restart(4)
    seconds = 110.0
    assert clock.lap(6) == pytest.approx(2.0)


def test_every_process_ends_with_the_same_error_when_the_last_checkpoint_cannot_be_written(latents, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", WORKER, str(latents), str(tmp_path / "r")]
    group = [
        subprocess.Popen(
            [*arguments, str(rank)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=60) for process in group]
    finally:
        for process in group:
            process.kill()
    assert [process.returncode for process in group] == [2, 2], said
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert first == second
    assert str(Path("r") / "checkpoints") in first
