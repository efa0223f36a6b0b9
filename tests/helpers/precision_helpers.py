"""What a measurement of precision finds, set by a test: networks of any width are then "measured"."""

from __future__ import annotations

import pytest
import torch

from mpdit_core.runtime import precision


def make_auto_mean(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on, `auto` comes to the type `name`, for networks however narrow."""
    gain = 2.0 if name == "bfloat16" else 0.5
    found = {torch.float32: gain, torch.bfloat16: 1.0}
    monkeypatch.setattr(precision, "measured_seconds", lambda device, sizes: found)
    monkeypatch.setattr(precision, "LEAST_WIDTH", 1)
