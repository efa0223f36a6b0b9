"""Features of fewer dimensions: the projection onto their principal directions, measured once on a sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mpdit_core.errors import UserError
from mpdit_core.runtime.checked_tensors import read_checked, write_checked
from mpdit_core.runtime.files import sha256

DIRECTIONS = "directions"


class Projection(NamedTuple):
    """`directions` [F, dims] float32, orthonormal, by falling share."""

    directions: Tensor
    share: float  # of the squared features of the sample that is left


def measure_projection(features: Tensor, dims: int) -> Projection:
    """The `dims` directions that keep most of `features` [n, N, F]: the principal ones about zero.

    Not about the mean: so dot products, and the cosines that alignment compares, change as little as they can.
    """
    rows = features.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows)  # ascending
    vectors = vectors.flip(1)[:, :dims]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))  # a direction's sign is a matter of choice
    share = (values.flip(0)[:dims].sum() / values.sum()).item()
    return Projection((vectors * largest.sign()).float(), share)


def write_projection(path: Path, projection: Projection) -> str:
    """Returns the file's SHA-256."""
    write_checked(path, {DIRECTIONS: projection.directions}, {})
    return sha256(path)


def read_projection(path: Path, recorded: str) -> Tensor:
    """The directions. Raises `UserError` (`damaged-file`) for a file that is not the one with this SHA-256."""
    if not path.is_file() or sha256(path) != recorded:
        raise UserError(
            f"{path} is missing or not what was written",
            code="damaged-file",
            expected=f"a file with the SHA-256 {recorded[:16]}…",
            remedy="restore it, or add --replace-teacher to make all features again",
        )
    return read_checked(path)[0][DIRECTIONS]


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
