"""`mpdit demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpdit_cli import console, options


def command(
    out: Annotated[Path, typer.Option("--out", help="Where everything the demo makes goes.")] = Path("demo"),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Training steps; fewer for a quick look.")] = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """See the whole pipeline on real digits: encode, train, sample, evaluate, count. Offline, a few minutes."""
    from mpdit_core.demo import demo

    console.run_job(demo(out=out, device_name=device, steps=steps))
