"""How a check fails, and what all checks of plugins share. The check of a command needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpdit_core.plugins import Kind, contract_problem

if TYPE_CHECKING:
    import torch
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


def require_function_of_images(
    compute: Callable[[Tensor], dict[str, Tensor]], images: Tensor, *, dtype: torch.dtype, autocast: bool = True
) -> dict[str, Tensor]:
    """Requires results [B, …] by name that depend on each of the images [B, K, H, W] alone, and returns them.

    They have the type `dtype`, are finite and without gradients, and are the same in the second call, in any batch and,
    with `autocast`, within an autocast region. The first and the last image differ, and so must their results.
    """
    import torch

    before = images.clone()
    whole, again = compute(images), compute(images)
    require(torch.equal(images, before), "unchanged images")
    alone = [compute(image[None]) for image in images]
    in_autocast = whole
    if autocast:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            in_autocast = compute(images)
    for name, found in whole.items():
        right = isinstance(found, torch.Tensor) and found.ndim > 0 and len(found) == len(images)
        require(right, f"{name} [B, …], a tensor", found)
        require(found.dtype == dtype, f"{name} in {dtype}", found.dtype)
        require(not found.requires_grad, f"{name} without gradients")
        require(torch.isfinite(found).all(), f"{name} finite")
        require(torch.equal(found, again[name]), f"{name} the same the second time")
        require_close(torch.cat([one[name] for one in alone]), found, f"{name} the same whatever the batch size")
        require_close(in_autocast[name], found, f"{name} the same under autocast")
        require(not torch.allclose(found[0].float(), found[-1].float()), f"other {name} for other images")
    return whole


def require_fingerprint(plugin: Any) -> None:
    first = plugin.fingerprint()
    require(isinstance(first, str) and first, "a fingerprint, as text")
    require(plugin.fingerprint() == first, "the same fingerprint every time")
