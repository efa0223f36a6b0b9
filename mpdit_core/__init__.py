"""The library behind `mpdit`. Importing it is cheap; torch is imported when one of these names is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["import_official", "load_model", "load_sampler"]

if TYPE_CHECKING:
    from mpdit_core.interop.official import import_official
    from mpdit_core.models.model_folder import load_model
    from mpdit_core.samplers import load_sampler

_HOMES = {"load_model": "models.model_folder", "load_sampler": "samplers", "import_official": "interop.official"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"mpdit_core.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
