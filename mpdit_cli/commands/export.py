"""`mpdit export MODEL OUT`: a model for others, as a folder or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpdit_cli import console
from mpdit_cli.options import Device, Json, Quiet


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, an export or hf:ORG/NAME.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    form: Annotated[
        str, typer.Option("--format", help="mpdit, diffusers, onnx, torch-export; datasets for a folder of latents.")
    ] = "mpdit",
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16.")] = False,
    push: Annotated[str | None, typer.Option("--push", metavar="ORG/NAME", help="Upload it to the Hub, too.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the Hub repository private.")] = False,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Licence of the weights, for the card.")
    ] = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model for others: weights, configuration and a model card.

    Example: mpdit export runs/xl-256-1 models/mine --push me/mpdit-xl
    """
    from mpdit_core.interop.export.job import ExportOptions, export
    from mpdit_core.runtime.device import select_device
    from mpdit_core.settings import validate

    select_device(device)  # nothing here needs one, but a wrong name is a mistake here as everywhere
    given = dict(form=form, half=half, push=push, private=private, licence=licence)
    console.run_job(export(model, out, validate(ExportOptions, given, origin="mpdit export")))
