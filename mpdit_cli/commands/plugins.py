"""`mpdit plugins`: what is installed and what is broken; `show NAME`; `new KIND NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mpdit_cli import console, options

app = typer.Typer(help="List plugins, broken ones with reason and remedy; describe one; write a new one.")

Folder = Annotated[Optional[Path], typer.Option("--out", help="Folder to write; default ./mpdit-NAME.")]  # noqa: UP045


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List the installed samplers, data sets and feature extractors."""
    if context.invoked_subcommand is None:
        from mpdit_core.plugins.job import list_plugins

        console.run_job(list_plugins())


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A plugin's name, module:Class or ./file.py:Class.")],
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Describe one plugin: its package and its options."""
    from mpdit_core.plugins.job import show_plugin

    console.run_job(show_plugin(name))


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="sampler, dataset or features.")],
    name: Annotated[str, typer.Argument(help="Its name, like my-sampler.")],
    out: Folder = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a package for a new plugin; it installs and passes its own test as written."""
    from mpdit_core.plugins.job import new_plugin

    console.run_job(new_plugin(kind, name, folder=out))
