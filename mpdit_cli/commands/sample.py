"""`mpdit sample MODEL`: images from a model."""

from __future__ import annotations

from typing import Annotated

import typer

from mpdit_cli import console
from mpdit_cli.fields import Nproc, options_command
from mpdit_core.sampling.options import SampleOptions, SampleResult


@options_command(SampleOptions, name="mpdit sample")
def command(
    options: SampleOptions,
    show: Annotated[
        bool, typer.Option("--show", help="Show the picture in the terminal.", rich_help_panel="Output")
    ] = False,
    nproc: Nproc = "auto",
) -> None:
    """Make images with a model.

    Example: mpdit sample runs/digits-1 -n 60 --guidance-scale 1.5
    """
    from mpdit_core.sampling import sample

    result = console.run(sample, options, nproc=nproc, device=options.device)
    console.show(result, summary(result))
    if show and result.grid:
        console.show_picture(str(result.grid))


def summary(result: SampleResult) -> console.Summary:
    """The set in a few lines."""
    return console.Summary(title=f"{result.images} samples", rows={"where": str(result.samples)})
