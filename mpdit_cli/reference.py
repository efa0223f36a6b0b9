"""The command-line reference, docs/cli.md, made from the commands: `python -m mpdit_cli.reference > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from mpdit_cli.app import build_app

HEADER = """# Commands

Every command also takes `--help`, and `--set KEY=VALUE` for any option by its name. This page is made by
`python -m mpdit_cli.reference` from the same fields as the commands; a test compares it.
"""


def reference() -> str:
    """The whole page as Markdown."""
    root: Any = typer.main.get_command(build_app())
    lines = [line for name, command in root.commands.items() for line in _section(f"mpdit {name}", command)]
    return "\n".join([HEADER, *lines])


def _section(name: str, command: Any) -> Iterator[str]:
    yield from (f"## {name}", "", (command.help or "").replace("\b", "").strip(), "")
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        yield from ("| option | value | default | meaning |", "|---|---|---|---|", *rows, "")
    for sub, inner in getattr(command, "commands", {}).items():
        yield from _section(f"{name} {sub}", inner)


def _row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    is_argument = parameter.param_type_name == "argument"
    shown = parameter.name.upper() if is_argument else ", ".join(f"`{name}`" for name in names)
    meaning, _, default = (parameter.help or "").removesuffix(".").partition(" (default: ")
    if isinstance(parameter.default, str):
        default = parameter.default
    cells = (shown, "" if is_argument else parameter.metavar or "", default.removesuffix(")"), f"{meaning}.")
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(cell: str) -> str:
    """Text as a cell of a table: its bars end no cell, its brackets begin no link."""
    return cell.replace("\n", " ").replace("|", "\\|").replace("][", "]\\[")


if __name__ == "__main__":
    typer.echo(reference(), nl=False)
