"""`mpdit train`: train a model on encoded latents, or resume a run."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import Nproc, options_command
from mpdit_core.training.options import TrainOptions


@options_command(TrainOptions, name="mpdit train")
def command(options: TrainOptions, nproc: Nproc = "auto") -> None:
    """Train a model on encoded latents.

    Example: mpdit train --preset xl-256
    """
    from mpdit_core.training import train

    result = console.run(train, options, nproc="1" if options.dry_run else nproc, device=options.device)
    console.show(result)
