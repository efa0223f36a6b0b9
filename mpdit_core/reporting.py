"""What a job reports while it runs. A job calls its `report` with one of these; the CLI draws them, tests collect them.

To add one: a frozen dataclass below, and how it is drawn in mpdit_cli/console.py (others are printed as JSON only).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias, cast


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. The JSON name of `Saved` is `saved`."""

    @classmethod
    def name(cls) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def as_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values; `event` comes first."""
        return {"event": self.name()} | {f.name: jsonable(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """`done` of `total` `unit`s of `task`; sent as often as the job likes, the console thins them out."""

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
    """A file or folder stands complete under its final name. `what` is a stable word: checkpoint, preview, grid."""

    what: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Skipped(Event):
    """An input was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """One line for the person who watches."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Warning(Event):
    """Something that did not stop the job but may spoil its result. `code` is short and stable, `text` for people."""

    code: str
    text: str


Reporter: TypeAlias = Callable[[Event], None]
"""Takes one event; returns nothing."""


def silent(event: Event) -> None:
    """The reporter of a job that nobody watches."""


def without_repeats(report: Reporter, told: Callable[[Event], str | None]) -> Reporter:
    """Passes on the first of the events of which `told` gives the same text, and all of which it gives None."""
    texts: set[str] = set()

    def passing(event: Event) -> None:
        text = told(event)
        if text is None or text not in texts:
            report(event)
        texts.update([text] if text is not None else [])

    return passing


def jsonable(value: Any) -> Any:
    """Paths become strings, tuples lists; NaN and infinities become None, which JSON can hold."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in cast(Sequence[Any], value)]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
