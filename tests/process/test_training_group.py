"""The window of images/s, and checkpoints that cannot be written in a group of processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from train_helpers import run_group

from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import find_checkpoints
from mpdit_core.training.hooks.clock import WorkClock
from mpdit_core.training.state.checkpoints import read
from mpdit_core.training.state.sharded import can_write

WORKER = """
import json, sys
from pathlib import Path
from mpdit_core.errors import UserError
from mpdit_core.reporting import TrainStep
from mpdit_core.training.job import TrainOptions, train
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


SHARDED_WORKER = """
import json, os, resource, signal, sys, time
from pathlib import Path
from mpdit_core.errors import UserError
from mpdit_core.reporting import TrainStep, Warn
from mpdit_core.training.job import TrainOptions, train
latents, run, rank = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
options = TrainOptions(preset="tiny", latents=latents, run=run, device="cpu", steps=3, assignments=[
    "preview.every=0", "train.checkpoint_every=1", 'train.parallel="fsdp"'])
try:
    for event in train(options):
        if isinstance(event, TrainStep) and event.step == 2 and rank == "1":
            while not (run / "checkpoints" / "step-0000001").exists():
                time.sleep(0.01)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        if isinstance(event, Warn):
            print(json.dumps(event.text))
except UserError as error:
    print(json.dumps(error.what))
    sys.stdout.flush()
    os._exit(2)  # as mpdit_cli/__main__.py ends
"""

parts = pytest.mark.skipif(not can_write(), reason="this torch writes no parts")


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
    codes, said = run_group(WORKER, latents, tmp_path / "r")
    assert codes == [2, 2], said
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert first == second
    assert str(Path("r") / "checkpoints") in first


@parts
def test_a_sharded_checkpoint_that_one_process_cannot_write_is_given_up_by_all(latents, tmp_path):
    """Process 1 alone may write no more: a warning on the way, an error at the end, the older checkpoint stays."""
    run = tmp_path / "r"
    codes, said = run_group(SHARDED_WORKER, latents, run)
    assert codes == [2, 2], said
    warned, failed = ([json.loads(out.splitlines()[i]) for out, _ in said] for i in (-2, -1))
    assert "checkpoint not written, training goes on" in warned[0]
    assert failed[0].partition(" of ")[0] == failed[1].partition(" of ")[0] == "process 1 could not write its part"
    assert "File too large" in failed[0]
    complete, torn = find_checkpoints(run)
    assert [p.name for p in complete] == ["step-0000001"]
    assert not torn
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-0000001"]
    assert read(complete[0]).position.step == 1


@parts
@pytest.mark.parametrize("damage", ["lost", "torn"])
def test_a_damaged_part_is_named_and_its_checkpoint_passed_over(latents, tmp_path, damage):
    run = tmp_path / "r"
    codes, said = run_group(SHARDED_WORKER, latents, run)
    assert codes == [2, 2], said
    folder = find_checkpoints(run)[0][0]
    part = max((folder / "training").iterdir(), key=lambda file: file.stat().st_size)
    if damage == "lost":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"training cannot be read"):
            read(folder)
    complete, torn = find_checkpoints(run)
    assert complete == []
    assert [where for where, _ in torn] == [folder]
    assert {"lost": "holds 1 of its 2 parts", "torn": part.name}[damage] in torn[0][1]
