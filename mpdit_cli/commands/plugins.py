"""`mpdit plugins`: what is installed and what is broken; `show NAME`; `new KIND NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpdit_cli import console

app = typer.Typer(help="List plugins, broken ones with reason and remedy; describe one; write a new one.")

Json = Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only warnings, errors and the result.")]


@app.callback(invoke_without_command=True)
def command(context: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """List the installed samplers, data sets and feature extractors."""
    if context.invoked_subcommand is None:
        from mpdit_core.plugins.job import list_plugins

        console.show(console.run(list_plugins))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a plugin, module:Class or ./file.py:Class.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Describe one plugin: its package and its options."""
    from mpdit_core.plugins.job import show_plugin

    console.show(console.run(show_plugin, name))


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="sampler, dataset or features.")],
    name: Annotated[str, typer.Argument(help="Its name, such as my-sampler.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write (default: ./mpdit-NAME).")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a package for a new plugin; it installs and passes its own test as written."""
    from mpdit_core.plugins.job import new_plugin

    console.show(console.run(new_plugin, kind, name, out))
