"""`mpdit profile-flops`: see mpdit_core/profiling/job.py."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from mpdit_cli import console, options

Texts = Optional[list[str]]  # noqa: UP045 - typer reads this at run time
Text = Optional[str]  # noqa: UP045
Number = Optional[int]  # noqa: UP045


def command(
    model: Annotated[Text, typer.Argument(help="A run, a checkpoint, an export or hf:ORG/NAME.")] = None,
    preset: Annotated[
        Texts, typer.Option("--preset", help="A preset, or DiT-XL/2, SiT-B/4, MPDiT-XL/4x, MPDiT-XL/8x. Repeatable.")
    ] = None,
    assignments: options.Set = None,
    res: Annotated[Number, typer.Option("--res", help="Image side in pixels, any the patches divide.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="For training step, memory, --measure.")] = 1,
    convention: Annotated[str, typer.Option("--convention", help="true, or paper: as published.")] = "true",
    plot: Annotated[
        options.OptionalPath, typer.Option("--plot", metavar="FILE", help="Draw MACs against resolution.")
    ] = None,
    csv: Annotated[options.OptionalPath, typer.Option("--csv", metavar="FILE", help="Write all numbers.")] = None,
    markdown: Annotated[
        options.OptionalPath, typer.Option("--markdown", metavar="FILE", help="Write the tables for a paper.")
    ] = None,
    plan: Annotated[
        Text,
        typer.Option(
            "--plan",
            metavar="KEYS",
            help="Cost of training, e.g. 'epochs=240, dense_epochs=1400, hardware=h100, devices=8, utilisation=0.4, "
            "watts=700, images=1281167'; 'default' for the preset's epochs. hardware=measured times this machine.",
        ),
    ] = None,
    search: Annotated[
        Text,
        typer.Option(
            "--search",
            metavar="KEYS",
            help="Shapes within a budget, e.g. 'target_macs=30e9'; also levels=[2,3], show=20.",
        ),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Run and time the named models here.")] = False,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Count the parameters, compute and memory of models, exactly; compare them with dense ones."""
    from mpdit_core.profiling.job import ProfileOptions, profile

    asked = ProfileOptions(
        model=model,
        presets=tuple(preset or ()),
        assignments=tuple(assignments or ()),
        resolution=res,
        batch_size=batch_size,
        convention=convention,
        plot=plot,
        csv=csv,
        markdown=markdown,
        plan=plan,
        search=search,
        measure=measure,
        device=device,
    )
    console.run_job(profile(asked))
