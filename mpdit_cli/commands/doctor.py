"""`mpdit doctor`: what this machine and installation can do."""

from __future__ import annotations

import itertools

import typer

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.doctor.options import Diagnosis, DoctorOptions
from mpdit_core.table import Table


@options_command(DoctorOptions)
def command(options: DoctorOptions) -> None:
    """Examine this machine and installation: versions, devices and their rates, weights, disk, plugins, runs.

    Examples: mpdit doctor; mpdit doctor plugins here --json

    The exit code is 2 if a command would fail because of what was found. The output contains no secrets.
    """
    from mpdit_core.doctor import diagnose

    result = console.run(diagnose, options)
    console.show(result, table(result))
    for check in result.checks:
        if check.remedy:
            style = "red" if check.status == "fault" else "yellow"
            console.say(f"{check.status}: {check.name}\n  remedy: {check.remedy}", style=style)
    if result.faults:
        raise typer.Exit(2)


def table(result: Diagnosis) -> Table:
    """One line per check."""
    rows = []
    for area, checks in itertools.groupby(result.checks, key=lambda check: check.area):
        for number, check in enumerate(checks):
            state = "FAULT" if check.status == "fault" else check.status
            rows.append(["" if number else area, check.name, state, check.what])
    return Table(title="", columns=["area", "examined", "state", "found"], rows=rows)
