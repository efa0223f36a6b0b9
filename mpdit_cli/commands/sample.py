"""`mpdit sample MODEL`: images from a model."""

from __future__ import annotations

from typing import Annotated

import typer

from mpdit_cli import console
from mpdit_cli.fields import Nproc, options_command
from mpdit_core.errors import UserError
from mpdit_core.sampling.options import SampleOptions, SampleResult, SamplingOptions, ViewResult


@options_command(SampleOptions)
def command(
    options: SampleOptions,
    show: Annotated[
        bool,
        typer.Option("--show", help="Show the grid or the view in the terminal.", rich_help_panel="Output"),
    ] = False,
    nproc: Nproc = "auto",
) -> None:
    """Make images with a model.

    Example: mpdit sample runs/digits-1 -n 60 --guidance-scale 1.5
    """
    from mpdit_core.sampling import sample

    if options.views:
        if nproc not in ("auto", "1"):
            what = f"{nproc} processes cannot make one view"
            raise UserError(what, code="one-process", expected="one", remedy="leave --nproc out")
        nproc = "1"
    result = console.run(sample, options, nproc=nproc, device=options.device)
    if isinstance(result, ViewResult):
        rows = {"where": str(result.image), **result.facts}
        console.show(result, console.Summary(title=f"{result.view} of {options.model}", rows=rows))
        image = result.image
    else:
        console.show(result, summary(result, options))
        image = result.grid
    if show and image:
        console.show_picture(str(image))


def summary(result: SampleResult, options: SampleOptions) -> console.Summary:
    """The set in a few lines."""
    name = " ".join([options.sampler, *(f"{key}={value}" for key, value in options.sampler_options.items())])
    cost = f"{result.passes:.4g} passes of each image through the network"
    if result.saved:
        cost += f"; {result.saved:.4g} fewer than with guidance at all times"
    rows = {
        "where": str(result.samples),
        "sampler": f"{name}, {result.sampler['options']['num_steps']} steps, {result.nfe:.4g} evaluations (NFE)",
        "guidance": guidance(options),
        "cost": cost,
    }
    if result.images_per_second:
        rows["speed"] = f"{result.images_per_second:.3g} images/s"
    return console.Summary(title=f"{result.images} samples of {options.model}", rows=rows)


def guidance(options: SamplingOptions) -> str:
    """`apg eta=0.2, scale 1.5, for t from 0.1 to 0.8`; `off` for a scale of 1."""
    if options.guidance_scale == 1:
        return "off"
    rule = [options.guidance, *(f"{key}={value}" for key, value in options.guidance_options.items())]
    parts = [" ".join(rule), f"scale {options.guidance_scale:g}"]
    if options.guidance_schedule != "constant":
        parts.append(f"{options.guidance_schedule} schedule")
    if options.guidance_interval != (0, 1):
        parts.append("for t from {:g} to {:g}".format(*options.guidance_interval))
    if options.guide:
        parts.append(f"away from {options.guide}")
    return ", ".join(parts)
