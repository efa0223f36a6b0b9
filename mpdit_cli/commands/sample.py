"""`mpdit sample`: images from a model."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from typing import Annotated, Optional

import typer

from mpdit_cli import console, options
from mpdit_core.errors import Interrupted

OptionalInt = Optional[int]  # noqa: UP045 - typer reads these at run time
OptionalStr = Optional[str]  # noqa: UP045


class Format(StrEnum):
    png = "png"
    npz = "npz"
    latents = "latents"


class Precision(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Schedule(StrEnum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a checkpoint folder, an exported model or hf:ORG/NAME.")
    ],
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Images, exactly.")] = 16,
    classes: Annotated[
        str, typer.Option("--classes", help='all (balanced), random, or ids and names: 207,"golden retriever".')
    ] = "all",
    sampler: Annotated[str, typer.Option("--sampler", help="`mpdit plugins` lists them.")] = "euler",
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the sampler, such as grid=shifted. Repeatable."),
    ] = None,
    num_steps: Annotated[
        OptionalInt, typer.Option("--num-steps", min=1, help="Intervals of time.", show_default="the sampler's, 50")
    ] = None,
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", min=0, help="Classifier-free guidance; 1 is off.")
    ] = 1.0,
    guidance_interval: Annotated[
        str, typer.Option("--guidance-interval", metavar="LO,HI", help="Times t (1 noise, 0 data) it acts between.")
    ] = "0,1",
    guidance_schedule: Annotated[
        Schedule, typer.Option("--guidance-schedule", help="How the scale changes with t.")
    ] = Schedule.constant,
    guide: Annotated[
        OptionalStr, typer.Option("--guide", metavar="MODEL", help="Autoguidance: a weaker model to guide away from.")
    ] = None,
    seed: options.Seed = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images computed at once.")] = 32,
    precision: Annotated[Precision, typer.Option("--precision", help="Of the network.")] = Precision.auto,
    compile_: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--compile/--no-compile", help="torch.compile.", show_default="on a GPU, for many images"),
    ] = None,
    out: Annotated[
        options.OptionalPath,
        typer.Option("--out", metavar="DIR", help="Folder to write.", show_default="samples/MODEL-N"),
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="Files to write.")] = Format.png,
    by_class: Annotated[bool, typer.Option("--by-class", help="PNGs in one folder a class.")] = False,
    nproc: options.Nproc = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make images with a model.

    Example: mpdit sample runs/digits-1 -n 60 --guidance-scale 1.5
    """
    from mpdit_core.config import validate
    from mpdit_core.jobs.generate import SampleOptions
    from mpdit_core.jobs.sample import SampleRequest, sample
    from mpdit_core.jobs.sample_options import read_interval, read_sampler_options

    wanted = validate(
        SampleOptions,
        {
            "num_samples": num_samples,
            "classes": classes,
            "sampler": sampler,
            "sampler_options": read_sampler_options(set_ or ()),
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": read_interval(guidance_interval),
            "guidance_schedule": guidance_schedule.value,
            "guide": guide,
            "seed": seed,
            "batch_size": batch_size,
            "precision": precision.value,
            "compile": "auto" if compile_ is None else compile_,
        },
        origin="sample",
    )
    request = SampleRequest(
        model=model, options=wanted, out=out, format=format_.value, by_class=by_class, device=device
    )
    try:
        console.launch_or_run(nproc, device, lambda: sample(request))
    except (KeyboardInterrupt, Interrupted):
        console.say(f"stopped; finished blocks are kept. To go on: mpdit {shlex.join(sys.argv[1:])}")
        raise
