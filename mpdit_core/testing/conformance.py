"""How a check fails."""

from __future__ import annotations


class ConformanceError(AssertionError):
    """A plugin does not keep its contract."""


def require(condition: object, expected: str, got: object = "") -> None:
    if not condition:
        raise ConformanceError(f"expected {expected}" + (f", got {got}" if str(got) else ""))
