"""Commands of other packages: listed by their metadata alone, imported when they are called or asked for help.

A command is an entry point of the group `mpdit.commands` (docs/plugins.md). It gets parameters made from its options
class, `--set`, `--json`, `--quiet`, progress and exit codes like the commands of mpdit itself.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import typer

from mpdit_cli import console
from mpdit_cli.fields import Command, options_command
from mpdit_core.plugins import command_entries, load, names
from mpdit_core.settings import Options, Result

PANEL = "Commands of plugins"


def add_plugin_commands(app: typer.Typer, *, taken: Collection[str], called: str) -> None:
    """Adds the commands of all installed packages to `app`.

    Args:
        taken: names of mpdit's own commands, which no package can take.
        called: the command of this command line; it alone is imported.

    Raises:
        UserError: `called` is offered by two packages, or broken.
    """
    if called and called not in taken and called in names("commands"):
        app.command(called, cls=Command, rich_help_panel=PANEL)(_command(called))
    for entry in command_entries():
        if entry.name in taken or entry.name == called:
            continue
        app.command(entry.name, help=entry.summary, rich_help_panel=PANEL)(lambda: None)  # is not called


def _command(name: str) -> Any:
    plugin = load("commands", name)

    def command(options: Options) -> None:
        result: Result = console.run(plugin.job, options)
        console.show(result, console.Summary(title=name, rows=rows(result)))

    command.__doc__ = plugin.help
    return options_command(plugin.options)(command)


def rows(result: Result) -> dict[str, str]:
    """Labels and values of a result, made from its fields."""
    return {name.replace("_", " "): str(value) for name, value in result if value is not None}
