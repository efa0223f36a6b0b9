"""`mpdit import FILE`: an official MPDiT, DiT or SiT checkpoint as a model of mpdit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpdit_cli import console
from mpdit_cli.options import Device, Json, OptionalPath, Quiet


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pt or .safetensors file of the official code.")],
    out: Annotated[OptionalPath, typer.Option("--out", help="Folder to make; default models/<file's name>.")] = None,
    kind: Annotated[str, typer.Option("--kind", help="auto, mpdit, dit or sit.")] = "auto",
    num_heads: Annotated[
        int | None,
        typer.Option("--num-heads", min=1, help="Attention heads, where the width is not a published model's."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="ema or model; default ema where the file has it."),
    ] = None,
    autoencoder: Annotated[
        str | None,
        typer.Option("--autoencoder", help="Hub id or folder; default stabilityai/sd-vae-ft-ema."),
    ] = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert an official MPDiT, MPDiT v2, DiT or SiT checkpoint."""
    from mpdit_core.interop.official.job import ImportOptions, import_checkpoint
    from mpdit_core.runtime.device import select_device
    from mpdit_core.settings import validate

    select_device(device)  # converting needs none, but a wrong name is a mistake here as everywhere
    given = dict(out=out, kind=kind, num_heads=num_heads, weights=weights, autoencoder=autoencoder)
    options = validate(ImportOptions, {k: v for k, v in given.items() if v is not None}, origin="mpdit import")
    console.run_job(import_checkpoint(file, options))
