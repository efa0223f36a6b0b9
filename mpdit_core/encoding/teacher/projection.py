"""Features with fewer dimensions: the projection onto their principal directions, measured once on a sample."""

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
    """`directions` [F, dims] float32, orthonormal, the one with the largest share first."""

    directions: Tensor
    share: float  # share of the squared features of the sample that the projection keeps


def measure_projection(features: Tensor, dims: int) -> Projection:
    """The `dims` principal directions of `features` [n, N, F] about zero.

    Directions about zero, not about the mean, keep dot products best, and so the cosines that alignment compares.
    """
    rows = features.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows)  # ascending
    vectors = vectors.flip(1)[:, :dims]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))  # made positive: the sign is arbitrary
    share = (values.flip(0)[:dims].sum() / values.sum()).item()
    return Projection((vectors * largest.sign()).float(), share)


def write_projection(path: Path, projection: Projection) -> str:
    """Writes the projection; returns the SHA-256 of its file."""
    write_checked(path, {DIRECTIONS: projection.directions}, {})
    return sha256(path)


def read_projection(path: Path, recorded: str) -> Tensor:
    """The directions. Raises `UserError` (`damaged-file`) for a file with another SHA-256 than `recorded`."""
    if not path.is_file() or sha256(path) != recorded:
        raise UserError(
            f"{path} is missing or has changed since it was written",
            code="damaged-file",
            expected=f"a file with the SHA-256 {recorded[:16]}…",
            remedy="restore it, or add --replace-teacher to make all features again",
        )
    return read_checked(path)[0][DIRECTIONS]


@contextmanager
def one_thread() -> Iterator[None]:
    """Makes torch compute with one thread until the body ends."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
