"""Random numbers that depend on what they are for, not on who asks or when.

Every draw has a key such as `(seed, "noise", image_index)`; a hash of the key seeds a generator of its own. So a run
continues after a restart, and gives the same numbers on any number of processes.
"""

from __future__ import annotations

import hashlib

import torch


def hash_seed(*key: int | str) -> int:
    """A 63-bit seed from `key`; stable over Python versions and machines."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for `key`. On the CPU (the default) its numbers are the same on every machine."""
    return torch.Generator(device=device).manual_seed(hash_seed(*key))
