"""Choosing the device to compute on."""

from __future__ import annotations

import os

import torch

from mpdit_core.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def select_device(name: str = "auto") -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `mps`; under torchrun each process gets its own GPU.

    Raises:
        UserError: an unknown name, or a device this machine does not have.
    """
    if name not in DEVICES:
        raise UserError(f"--device {name}", expected=", ".join(DEVICES))
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        have = [kind for kind, there in available.items() if there]
        raise UserError(f"--device {name}: torch finds none here", expected=" or ".join(have), remedy="--device auto")
    if name == "cuda":
        index = int(os.environ.get("LOCAL_RANK", 0))
        if index >= torch.cuda.device_count():
            raise UserError(
                f"this process wants GPU {index}, but {torch.cuda.device_count()} are here", remedy="lower --nproc"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device(name)


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are worth it: GPUs from Ampere on, never the CPU or MPS."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
