"""`mpdit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpdit_cli import console, options


def command(
    preset: Annotated[str | None, typer.Option("--preset", help="Where the configuration starts from.")] = None,
    config: Annotated[options.OptionalPath, typer.Option("--config", help="TOML laid over the preset.")] = None,
    latents: Annotated[
        options.OptionalPath, typer.Option("--latents", help="Folder of latents; default: the one that fits.")
    ] = None,
    run: Annotated[
        options.OptionalPath, typer.Option("--run", help="Run folder; an existing run goes on. Default: a new one.")
    ] = None,
    set_: options.Set = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps; default: by epochs.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with an existing run.")] = True,
    init_from: Annotated[
        str | None, typer.Option("--init-from", metavar="MODEL", help="Begin with another model's weights.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print configuration and needs, write nothing.")
    ] = False,
    nproc: options.Nproc = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model on encoded latents.

    Example: mpdit train --preset xl-256
    """
    from mpdit_core.training.job import TrainOptions, train

    wanted = TrainOptions(
        preset=preset,
        config_file=config,
        assignments=set_ or (),
        latents=latents,
        run=Path(run) if run else None,
        steps=steps,
        resume=resume,
        init_from=init_from,
        device=device,
        dry_run=dry_run,
    )
    console.launch_or_run("1" if dry_run else nproc, device, lambda: train(wanted))
