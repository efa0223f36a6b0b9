"""Makes the command-line reference from the commands: `python -m mpdit_cli.reference > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from mpdit_cli.app import build_app

HEADER = """# Commands

Every command also takes `--help`, and `--set KEY=VALUE` for any option by its name. This page is made by
`python -m mpdit_cli.reference` from the same fields as the commands; a test checks that it is current.
"""


def reference() -> str:
    """The whole page as Markdown."""
    lines = [line for name in _commands() for line in _section(f"mpdit {name}", _commands(called=name)[name])]
    return "\n".join([HEADER, *lines])


def _commands(called: str = "") -> dict[str, Any]:
    """All commands by name. Of those of other packages, only `called` has its options."""
    root: Any = typer.main.get_command(build_app(called))
    return root.commands


def _section(name: str, command: Any) -> Iterator[str]:
    yield from (f"## {name}", "", (command.help or "").strip(), "")
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
    cells = (shown, "" if is_argument else parameter.metavar or "", default.removesuffix(")"), f"{meaning}.")
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(cell: str) -> str:
    """Text as a cell of a table: bars and brackets are shown, and do not end a cell or begin a link."""
    return cell.replace("\n", " ").replace("|", "\\|").replace("][", "]\\[")


if __name__ == "__main__":
    typer.echo(reference(), nl=False)
