"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OptionalPath = Path | None

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout; text for people to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only errors and the result.")]
Nproc = Annotated[str, typer.Option("--nproc", help="Processes on this machine: a number, or auto (one a GPU).")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; values are TOML. Repeatable."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Fixes everything that is drawn at random.")]
