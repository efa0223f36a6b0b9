"""`mpdit ls`: runs, latents, samples and evaluations under a folder."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.runtime.files import size_text
from mpdit_core.table import Table
from mpdit_core.workspace.options import Entry, Kind, Listing, ListOptions


@options_command(ListOptions)
def command(options: ListOptions) -> None:
    """List runs, latents, samples and evaluations, newest first.

    Example: mpdit ls
    """
    from mpdit_core.workspace import list_workspace

    result = console.run(list_workspace, options)
    console.show(result, *parts_of(result))
    for entry in result.entries:
        if entry.problem:
            console.say(f"{entry.status}: {entry.problem}\n  remedy: {entry.remedy}", style="yellow")


def parts_of(found: Listing) -> list[Table | console.Summary]:
    """A table per kind; if there is nothing, what to type first."""
    if not found.entries:
        return [
            console.Summary(title=f"{found.folder} holds nothing made by mpdit", rows={}, next_command="mpdit demo")
        ]
    tables = []
    for kind, (title, columns) in COLUMNS.items():
        entries = [entry for entry in found.entries if entry.kind == kind]
        if entries:
            rows = [[text(entry) for text in columns.values()] for entry in entries]
            tables.append(Table(title=title, columns=list(columns), rows=rows))
    return tables


def _age(entry: Entry) -> str:
    return age((datetime.now(UTC) - datetime.fromisoformat(entry.changed)).total_seconds())


def _distance(entry: Entry) -> str:
    return "" if entry.distance is None else f"{entry.distance:.4g} {entry.distance_name}"


def _if_ok(entry: Entry, text: str | None) -> str:
    """`text`, or "damaged" or "unfinished" in its place."""
    return text or "" if entry.status == "ok" else entry.status


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


COLUMNS: dict[Kind, tuple[str, dict[str, Callable[[Entry], str]]]] = {
    "run": ("Runs", {
        "run": lambda run: str(run.path),
        "age": _age,
        "preset": lambda run: _if_ok(run, run.preset),
        "step": lambda run: _count(run.step),
        "images": lambda run: _count(run.images_seen),
        "loss": lambda run: "" if run.loss is None else f"{run.loss:.4f}",
        "distance": _distance,
        "size": lambda run: size_text(run.bytes),
    }),
    "samples": ("Samples", {
        "samples": lambda samples: str(samples.path),
        "age": _age,
        "preset": lambda samples: _if_ok(samples, samples.preset),
        "step": lambda samples: _count(samples.step),
        "images": lambda samples: _count(samples.images),
        "by": lambda samples: samples.about,
        "size": lambda samples: size_text(samples.bytes),
    }),
    "evaluation": ("Evaluations", {
        "of": lambda record: record.of or record.path.stem,
        "age": _age,
        "step": lambda record: _count(record.step),
        "images": lambda record: _count(record.images),
        "distance": _distance,
        "by": lambda record: _if_ok(record, record.about),
    }),
    "latents": ("Latents", {
        "latents": lambda latents: str(latents.path),
        "age": _age,
        "images": lambda latents: _count(latents.images),
        "of": lambda latents: _if_ok(latents, latents.about),
        "size": lambda latents: size_text(latents.bytes),
    }),
}  # fmt: skip
"""For each kind the title of its table, and its columns with their texts."""


def age(seconds: float) -> str:
    """`5 min`: in the largest unit, from seconds to days, of which there is at least one."""
    for length, unit in ((60, "s"), (60, "min"), (24, "h")):
        if seconds < length:
            return f"{max(0, int(seconds))} {unit}"
        seconds /= length
    return "1 day" if seconds < 2 else f"{int(seconds)} days"
