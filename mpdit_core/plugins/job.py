"""The jobs behind `mpdit plugins`: the list, one plugin's page, a new package."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from mpdit_core.errors import UserError
from mpdit_core.plugins.finding import KINDS, find
from mpdit_core.plugins.loading import load_entry, resolve
from mpdit_core.plugins.scaffold import new_package
from mpdit_core.plugins.survey import Report, examine, survey
from mpdit_core.reporting import Event, Note, Result, Saved, Summary, Table

PREFIX = {"samplers": "sampler", "datasets": "dataset", "features": "features"}  # of --set


def list_plugins() -> Iterator[Event]:
    """All that is installed. A broken plugin is no error: it is listed."""
    reports = survey()
    for kind in KINDS:
        rows = [[r.name, r.package, _in_short(r)] for r in reports if r.kind == kind]
        if rows:
            yield Table(title=kind.capitalize(), columns=["name", "package", "what it is"], rows=rows)
    yield Note(text="`mpdit plugins show NAME` describes one and its options.")
    for report in reports:
        if report.status != "ok":
            yield Note(text=f"{report.status}: {_label(report)}: {report.reason}\n  remedy: {report.remedy}")
    yield Result(
        data={
            "plugins": [dataclasses.asdict(r) for r in reports],
            "broken": sum(r.status == "broken" for r in reports),
        }
    )


def show_plugin(name: str) -> Iterator[Event]:
    """What is called `name`, in every kind: where it comes from and its options.

    Raises:
        UserError: nothing has this name.
    """
    reports = _at(name) if ":" in name else survey(name=name)
    if not reports:
        for kind in KINDS:
            try:
                find(kind, name)
            except UserError as error:
                if error.remedy and "did you mean" in error.remedy:
                    raise
        raise UserError(f"no plugin is called {name!r}", remedy="`mpdit plugins` lists what is installed")
    for report in reports:
        rows = {"what": report.summary, "package": f"{report.package} {report.version}", "code": report.value}
        rows |= {key: str(value) for key, value in report.facts.items()}
        if report.status != "ok":
            rows |= {report.status: report.reason, "remedy": report.remedy}
        yield Summary(title=f"{report.name} ({report.kind})", rows={k: v for k, v in rows.items() if v.strip()})
        if report.options:
            prefix = PREFIX[report.kind]
            yield Table(
                title=f"options, given as --set {prefix}.KEY=VALUE",
                columns=["key", "type", "default", "what it is"],
                rows=[[_key(prefix, o.name), o.type, o.default or "(required)", o.description] for o in report.options],
            )
    yield Result(data={"plugins": [dataclasses.asdict(r) for r in reports]})


def _at(name: str) -> list[Report]:
    """The one at `module:Class` or `./file.py:Class`, of whatever kind it is."""
    problems = []
    for kind in KINDS:
        try:
            load_entry(resolve(kind, name))
            return [examine(resolve(kind, name))]
        except UserError as error:
            problems.append(error)
    raise problems[0]


def new_plugin(kind: str, name: str, *, folder: Path | None = None) -> Iterator[Event]:
    """Writes an installable package. Raises `UserError` as `scaffold.new_package`."""
    path = new_package(kind, name, folder=folder)
    yield Saved(what="package", path=path)
    yield Summary(
        title=f"{name}: install it, run its test, use it",
        rows={"test": f"python -m pytest {path}", "describe": f"mpdit plugins show {name}"},
        next_command=f"pip install -e {path}",
    )
    yield Result(data={"path": path, "kind": kind, "name": name})


def _in_short(report: Report) -> str:
    return (
        report.summary.partition(". ")[0].removesuffix(".") if report.status == "ok" else f"{report.status}: see below"
    )


def _key(prefix: str, option: str) -> str:
    return "--num-steps" if (prefix, option) == ("sampler", "num_steps") else f"{prefix}.{option}"


def _label(report: Report) -> str:
    return f"{report.kind} {report.name!r} of {report.package} {report.version}"
