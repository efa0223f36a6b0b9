"""Events: their names and their form as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpdit_core.reporting import Event, Note, Progress, Saved, Skipped, Step, Warning, jsonable, silent

EVENTS = {
    "progress": Progress(task="sample", done=1, total=4, unit="images"),
    "step": Step(
        step=1, total_steps=2, loss=float("nan"), grad_norm=1.0, learning_rate=1e-4, images_seen=8,
        images_per_second=3.0, extra={"mfu": 0.4},
    ),
    "saved": Saved(what="checkpoint", path=Path("runs/a")),
    "skipped": Skipped(path="a.png", reason="no picture"),
    "note": Note(text="hello"),
    "warning": Warning(code="few-samples", text="few samples"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "event"), EVENTS.items())
def test_an_event_as_json(name: str, event: Event):
    made = json.loads(json.dumps(event.as_json(), allow_nan=False))
    assert next(iter(made)) == "event"
    assert made["event"] == name
    assert set(made) == {"event", *vars(event)}
    assert silent(event) is None


def test_paths_tuples_and_what_json_cannot_hold():
    value = {1: (Path("a"), float("inf"), None, True, 2.5)}
    assert jsonable(value) == {"1": ["a", None, None, True, 2.5]}
