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


class Space(StrEnum):
    latents = "latents"
    pixels = "pixels"


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a checkpoint folder, an exported model or hf:ORG/NAME.")
    ],
    num_samples: Annotated[
        OptionalInt,
        typer.Option(
            "--num-samples", "-n", min=1, help="Images, exactly (of a cell or row).", show_default="16; fewer in a view"
        ),
    ] = None,
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
    sweep: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--sweep", metavar="KEY=V1,V2,…", help="One sheet of the same noise under these. Twice: two axes."
        ),
    ] = None,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="x_t and the data predicted from it along t: a strip and a GIF.")
    ] = False,
    interpolate: Annotated[
        OptionalStr, typer.Option("--interpolate", metavar="A,B", help="From image A's noise to image B's.")
    ] = None,
    nearest: Annotated[
        Optional[Space],  # noqa: UP045
        typer.Option("--nearest", help="The closest training images beside each sample."),
    ] = None,
    latents: Annotated[
        options.OptionalPath,
        typer.Option("--latents", metavar="DIR", help="For --nearest.", show_default="those it was trained on"),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the picture in the terminal.")] = False,
    nproc: options.Nproc = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make images with a model.

    Example: mpdit sample runs/digits-1 -n 60 --guidance-scale 1.5
    """
    from mpdit_core.config import validate
    from mpdit_core.sampling.command_options import choose_view, read_interval, read_sampler_options
    from mpdit_core.sampling.generator import SampleOptions
    from mpdit_core.sampling.job import SampleRequest, sample
    from mpdit_core.sampling.views.common import IMAGES, ViewRequest
    from mpdit_core.sampling.views.interpolation import interpolate as make_interpolation
    from mpdit_core.sampling.views.nearest import nearest as find_nearest
    from mpdit_core.sampling.views.sweep import sweep as make_sweep
    from mpdit_core.sampling.views.trajectory import trajectory as make_trajectory

    view = choose_view(
        {"sweep": sweep, "trajectory": trajectory, "interpolation": interpolate, "nearest": nearest},
        format=format_.value,
        by_class=by_class,
        nproc=nproc,
    )

    wanted = validate(
        SampleOptions,
        {
            "num_samples": IMAGES[view] if num_samples is None else num_samples,
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
    looking = ViewRequest(model=model, options=wanted, out=out, device=device)
    jobs = {
        "samples": lambda: sample(request),
        "sweep": lambda: make_sweep(looking, sweep or ()),
        "trajectory": lambda: make_trajectory(looking),
        "interpolation": lambda: make_interpolation(looking, interpolate or ""),
        "nearest": lambda: find_nearest(looking, nearest.value if nearest else "latents", latents),
    }
    try:
        result = console.launch_or_run(nproc if view == "samples" else "1", device, jobs[view])
    except (KeyboardInterrupt, Interrupted):
        if view == "samples":
            console.say(f"stopped; finished blocks are kept. To go on: mpdit {shlex.join(sys.argv[1:])}")
        raise
    if show and result.get("grid"):
        console.show_picture(result["grid"])
