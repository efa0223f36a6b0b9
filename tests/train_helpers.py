"""Training runs for tests; a module of its own, so that a fork server's children can import it by name."""

from __future__ import annotations

from pathlib import Path

import torch

from mpdit_core.jobs.train import TrainOptions, train

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
