"""Replaces the measurement behind the precision `auto`."""

from __future__ import annotations

import pytest
import torch

from mpdit_core.runtime import precision


def make_auto_mean(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes `auto` choose the type `name`, also for networks too narrow to be measured."""
    gain = 2.0 if name == "bfloat16" else 0.5
    found = {torch.float32: gain, torch.bfloat16: 1.0}
    monkeypatch.setattr(precision, "measured_seconds", lambda device, *sizes: found)
    monkeypatch.setattr(precision, "MIN_WIDTH", 1)
