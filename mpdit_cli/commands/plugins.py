"""`mpdit plugins`: the installed plugins, and which are broken; `show NAME`; `new KIND NAME`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpdit_cli import console
from mpdit_cli.console import Summary
from mpdit_cli.fields import Command, Group, Json, Quiet
from mpdit_core.plugins import KINDS, list_plugins, new_plugin, show_plugin
from mpdit_core.table import Table

if TYPE_CHECKING:
    from mpdit_core.plugins.job import PluginList, PluginReport

KINDS_OF_NEW = ", ".join(contract.singular for contract in KINDS.values())

app = typer.Typer(cls=Group, help="List plugins and what is wrong with broken ones; describe one; write a new one.")


@app.callback(invoke_without_command=True)
def command(context: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """List the installed plugins of every kind."""
    if context.invoked_subcommand is None:
        found = console.run(list_plugins)
        console.show(found, *list_tables(found))
        for report in found.plugins:
            if report.status != "ok":
                label = f"{report.kind} {report.name!r} of {report.package} {report.version}"
                console.say(f"{report.status}: {label}: {report.reason}\n  remedy: {report.remedy}")


@app.command(cls=Command)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a plugin, module:Class or ./file.py:Class.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Describe one plugin: its package and its options."""
    found = console.run(show_plugin, name)
    console.show(found, *[part for report in found.plugins for part in page(report)])


@app.command(cls=Command)
def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"Kind of plugin, one of {KINDS_OF_NEW}.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new plugin, such as my-sampler.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the new package (default: ./mpdit-NAME).")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a package for a new plugin: an example that can be installed at once, with a test that passes."""
    written = console.run(new_plugin, kind, name, out)
    summary = Summary(
        title=f"{written.name}: install it, run its test, use it",
        rows={"test": f"python -m pytest {written.path}", "describe": f"mpdit plugins show {written.name}"},
        next_command=f"pip install -e {written.path}",
    )
    console.show(written, summary)


def list_tables(found: PluginList) -> list[Table]:
    """One table per kind."""
    tables = []
    for kind in KINDS:
        rows = [[report.name, report.package, _in_short(report)] for report in found.plugins if report.kind == kind]
        if rows:
            title = f"{KINDS[kind].word}s".capitalize()
            tables.append(Table(title=title, columns=["name", "package", "what it is"], rows=rows))
    if tables:
        tables[-1] = dataclasses.replace(tables[-1], note="`mpdit plugins show NAME` describes one and its options.")
    return tables


def page(report: PluginReport) -> list[Summary | Table]:
    """One plugin: what it is, and a table of its options."""
    rows = {"what": report.summary, "package": f"{report.package} {report.version}".strip(), "code": report.value}
    for key, value in report.facts.items():
        rows[key] = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if report.status != "ok":
        rows |= {report.status: report.reason, "remedy": report.remedy}
    word, singular = KINDS[report.kind].word, KINDS[report.kind].singular
    summary = Summary(title=f"{report.name} ({word})", rows={key: text for key, text in rows.items() if text})
    if not report.options:
        return [summary]
    table = f"objective.{report.name}" if report.kind == "objectives" else singular
    keys = {o.name: f"{table}.{o.name}" for o in report.options}
    if report.kind == "samplers":
        keys["num_steps"] = "--num-steps"  # an option of the command
    options = Table(
        title=f"options, given as --set {table}.KEY=VALUE",
        columns=["key", "type", "default", "what it is"],
        rows=[[keys[o.name], o.type, o.default or "(required)", o.description] for o in report.options],
    )
    return [summary, options]


def _in_short(report: PluginReport) -> str:
    first = report.summary.partition(". ")[0].removesuffix(".")
    return first if report.status == "ok" else f"{report.status}: see below"
