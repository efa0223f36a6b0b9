"""Training runs for tests; a separate module, so that a fork server's children can import it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mpdit_core.models.model_folder import find_checkpoints
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.reporting import Event
from mpdit_core.settings import parse_assignments
from mpdit_core.training import TrainOptions, TrainResult, train
from mpdit_core.training.state.checkpoints import read_checkpoint

QUICK = ("preview.every=0", "train.checkpoint_every=4")
EXACT = ("step", "loss", "grad_norm", "learning_rate", "images_seen")


def options(latents: Path, run: Path, *assignments: str, **more: Any) -> TrainOptions:
    """Options of training: the preset `tiny` without previews, a checkpoint every 4 steps."""
    settings = parse_assignments((*QUICK, *assignments))
    return TrainOptions(
        **{"preset": "tiny", "latents": latents, "run": run, "device": "cpu", "settings": settings} | more
    )


def run_to_end(wanted: TrainOptions) -> list[Event]:
    """All events of a run."""
    return train_and_watch(wanted)[1]


def train_and_watch(wanted: TrainOptions) -> tuple[TrainResult, list[Event]]:
    """The result of a run, and all of its events."""
    torch.set_num_threads(1)
    events: list[Event] = []
    result = train(wanted, report=events.append)
    assert isinstance(result, TrainResult)
    return result, events


def state_of(run: Path) -> dict[str, torch.Tensor]:
    """Weights, optimizer and averages of the newest checkpoint."""
    newest = find_checkpoints(run)[0][-1]
    return read_checkpoint(newest).training() | load_file(newest / "model.safetensors")


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The reproducible values of each line of metrics.jsonl."""
    return [{key: line[key] for key in EXACT} for line in RunFolder(run).metrics()]


def assert_same_run(a: Path, b: Path) -> None:
    """The two runs must have ended with the same bits."""
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
    assert metrics_of(a) == metrics_of(b)


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """‖a - b‖ / ‖b‖ over all weights of two states."""
    first, second = (torch.cat([s[n].flatten() for n in sorted(s) if n.startswith("weights.")]) for s in (a, b))
    return ((first - second).norm() / second.norm()).item()


def arguments(latents: Path, run: Path, *assignments: str) -> list[str]:
    """The command line (after `mpdit`) with the same settings as `options`."""
    words = ["train", "--preset", "tiny", "--latents", str(latents), "--run", str(run), "--device", "cpu"]
    return words + [word for assignment in (*QUICK, *assignments) for word in ("--set", assignment)]
