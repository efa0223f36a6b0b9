"""The choice of a device."""

from __future__ import annotations

import torch
from data_helpers import refused

from mpdit_core.runtime.device import select_device


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with refused("no-such-device"):
        select_device("auto")
