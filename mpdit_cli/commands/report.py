"""`mpdit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpdit_cli import console, options


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[options.OptionalPath, typer.Option("--out", help="Default: RUN/report.html.")] = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one HTML page of a run that opens offline: curves, previews, evaluations, configuration, compute.

    Example: mpdit report runs/xl-256-1
    """
    from mpdit_core.run_report.job import report

    console.run_job(report(run, out=out))
