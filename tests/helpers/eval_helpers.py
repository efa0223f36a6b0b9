"""Images and options for short evaluations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpdit_core.evaluation import EvaluateOptions, EvaluationRecord, evaluate
from mpdit_core.reporting import Event, Warning


def pictures(count: int, side: int = 16, seed: int = 0) -> np.ndarray:
    """Random images [count, side, side, 3] uint8."""
    return np.random.RandomState(seed).randint(0, 256, (count, side, side, 3)).astype(np.uint8)


def enter_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `folder` the working folder, with caches of its own, 12 images in a.npz and 14 in b.npz."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPDIT_CACHE", str(folder / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    np.savez("a.npz", arr_0=pictures(12))
    np.savez("b.npz", arr_0=pictures(14, seed=1))
    return folder


def options(what: str | None = "a.npz", reference: str | None = "b.npz", **more: Any) -> EvaluateOptions:
    """Options of an evaluation with the features of the digits' classifier, on the CPU."""
    return EvaluateOptions(what=what, reference=reference, **{"features": "digits", "device": "cpu", **more})


def measured(what: str = "a.npz", reference: str | None = "b.npz", **more: Any) -> EvaluationRecord:
    return evaluate(options(what, reference, **more))


def warnings_of(events: Iterable[Event]) -> list[str]:
    """The codes of the warnings among the events."""
    return [event.code for event in events if isinstance(event, Warning)]
