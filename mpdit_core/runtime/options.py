"""The option of commands that compute: the device. Torch-free."""

from __future__ import annotations

from typing import Literal

from mpdit_core.settings import Options, setting


class DeviceOptions(Options):
    """Where a job computes."""

    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "device to compute on", panel="Running")
