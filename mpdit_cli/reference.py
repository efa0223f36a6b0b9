"""The command-line reference, docs/cli.md, made from the commands: `python -m mpdit_cli.reference > docs/cli.md`."""

from __future__ import annotations

from typing import Any

import typer

from mpdit_cli.app import build_app

HEADER = """# Commands

Every command also takes `--help`. This page is made by `python -m mpdit_cli.reference`; a test compares it.
"""


def reference() -> str:
    """The whole page as Markdown."""
    root: Any = typer.main.get_command(build_app())
    sections = [HEADER]
    for name, command in root.commands.items():
        sections += _section(f"mpdit {name}", command)
    return "\n".join(sections)


def _section(name: str, command: Any) -> list[str]:
    lines = [f"## {name}", "", (command.help or "").replace("\b", "").strip(), ""]
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        lines += ["| option | default | meaning |", "|---|---|---|", *rows, ""]
    for sub, inner in getattr(command, "commands", {}).items():
        lines += _section(f"{name} {sub}", inner)
    return lines


def _row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    is_argument = parameter.param_type_name == "argument"
    shown = parameter.name.upper() if is_argument else ", ".join(f"`{name}`" for name in names)
    default = "" if parameter.default is None or callable(parameter.default) else str(parameter.default)
    default = {"False": "", "True": "on", "[]": "", "Sentinel.UNSET": ""}.get(default, default)
    meaning = (getattr(parameter, "help", None) or "").replace("|", "\\|").replace("\n", " ")
    return f"| {shown} | {default} | {meaning} |"


if __name__ == "__main__":
    typer.echo(reference(), nl=False)
