"""Events: what a job passes to its `report` while it runs. The CLI draws them, tests collect them.

To add one: a frozen dataclass below, and how it is drawn in mpdit_cli/console.py (without that, only `--json` has it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias, cast


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""

    def as_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values. Its first key, `event`, holds the class name in lower case."""
        return {"event": type(self).__name__.lower()} | {f.name: jsonable(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """`done` of `total` `unit`s of `task`; a job may send any number, because the console does not draw them all."""

    task: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One optimizer step, averaged over processes. `step` counts from 1; `loss` is per element."""

    step: int
    total_steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    images_seen: int
    images_per_second: float
    extra: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A file or folder is complete, under its final name. `what` is a stable word: checkpoint, preview, grid."""

    what: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Skipped(Event):
    """An input was left out, for this reason."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """Text for people."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Warning(Event):
    """Something that does not stop the job but may spoil its result. `code` is short and stable, `text` for people."""

    code: str
    text: str


Reporter: TypeAlias = Callable[[Event], None]
"""A function of one event that returns nothing."""


def silent(event: Event) -> None:
    """The reporter of a job that nobody watches."""


def without_repeats(report: Reporter, text_of: Callable[[Event], str | None]) -> Reporter:
    """A reporter that drops an event whose `text_of` it has reported before; events for which that is None all pass."""
    seen: set[str | None] = set()

    def passing(event: Event) -> None:
        text = text_of(event)
        if text is None or text not in seen:
            report(event)
        seen.add(text)

    return passing


def jsonable(value: Any) -> Any:
    """`value` as JSON can hold it: paths become strings, tuples lists, NaN and infinities None."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in cast(Sequence[Any], value)]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
