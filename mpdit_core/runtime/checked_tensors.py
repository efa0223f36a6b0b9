"""Tensors in `.safetensors` files: every fault of a file is a user error.

`write_checked` also stores a checksum of the content; `read_checked` refuses content that differs from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpdit_core.runtime.files import reading, writing

CHECKSUM = "sha256"


@contextmanager
def opened(path: Path, *, remedy: str = "remove it and make it again") -> Iterator[Any]:
    """`safe_open`. Raises `UserError` as `files.reading`, also for what the body finds."""
    with reading(path, "a .safetensors file", remedy=remedy), safe_open(path, "pt") as file:
        yield file


def write_checked(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes tensors (on the CPU) and texts about them. Raises `UserError` as `files.writing`."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with writing(path) as temporary:
        save_file(whole, temporary, metadata={**about, CHECKSUM: _checksum(whole, about)})


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of `write_checked`. Raises `UserError` as `opened`, also for a single changed bit."""
    with opened(path) as file:
        about = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        if about.pop(CHECKSUM, None) != _checksum(tensors, about):
            raise ValueError("its content does not match its checksum")
    return tensors, about


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
