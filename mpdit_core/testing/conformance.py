"""How a check fails, and what all checks of plugins share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpdit_core.plugins import Kind, contract_problem

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4  # of the largest value


class ConformanceError(AssertionError):
    """A plugin does not keep its contract."""


def require(condition: object, expected: str, got: object = "") -> None:
    if not condition:
        raise ConformanceError(f"expected {expected}" + (f", got {got}" if str(got) else ""))


def require_contract(kind: Kind, plugin: Any, what: str) -> None:
    """Requires the attributes of the contract. `kind`: group of the plugin; `what`: what it should be."""
    problem = contract_problem(kind, plugin)
    require(problem is None, what, problem)


def require_close(found: Tensor, wanted: Tensor, what: str) -> None:
    """Requires equal numbers up to rounding."""
    scale = max(wanted.float().abs().max().item(), 1e-6)
    gap = (found.float() - wanted.float()).abs().max().item()
    require(gap <= TOLERANCE * scale, what, f"a difference of {gap:.2g}, for values up to {scale:.2g}")


def require_fingerprint(plugin: Any) -> None:
    first = plugin.fingerprint()
    require(isinstance(first, str) and first, "a fingerprint, as text")
    require(plugin.fingerprint() == first, "the same fingerprint every time")
