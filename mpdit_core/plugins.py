"""Finding and loading samplers, data sets and feature extractors by name: ours and other packages' alike.

All are entry points; ours are declared in pyproject.toml. Nothing is imported until it is named. `module:attribute`
and `./file.py:Attribute` work in place of a name. `MPDIT_PLUGINS=off` leaves only our own.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mpdit_core.config import settings_error
from mpdit_core.errors import UserError

Kind = Literal["samplers", "datasets", "features"]
KINDS: tuple[Kind, ...] = ("samplers", "datasets", "features")


def entries(kind: Kind) -> list[EntryPoint]:
    """Declared entry points of a kind, by name; not loaded."""
    found = sorted(entry_points(group=f"mpdit.{kind}"), key=lambda e: e.name)
    if os.environ.get("MPDIT_PLUGINS", "").lower() == "off":
        found = [e for e in found if e.dist is not None and e.dist.name == "mpdit"]
    return found


def names(kind: Kind) -> list[str]:
    return sorted({e.name for e in entries(kind)})


def load(kind: Kind, name: str) -> type:
    """The plugin class called `name`.

    Raises:
        UserError: unknown (with the nearest names), ambiguous (naming both packages), or broken (with the reason).
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        return _import(kind, name, EntryPoint(name=name, value=f"{module}:{attribute}", group=f"mpdit.{kind}"))
    found = [e for e in entries(kind) if e.name == name]
    if not found:
        near = difflib.get_close_matches(name, names(kind), n=2)
        raise UserError(
            f"there is no {kind.removesuffix('s')} called {name!r}",
            expected=", ".join(names(kind)) or "none is installed",
            remedy=f"did you mean {' or '.join(near)}?" if near else "`mpdit plugins` lists what is installed",
        )
    if len(found) > 1:
        packages = " and ".join(sorted(e.dist.name if e.dist else "?" for e in found))
        raise UserError(f"two packages offer {kind} {name!r}: {packages}", remedy="uninstall one of them")
    return _import(kind, name, found[0])


def _import(kind: Kind, name: str, entry: EntryPoint) -> type:
    try:
        importlib.invalidate_caches()
        loaded = entry.load()
    except Exception as error:
        raise UserError(
            f"{kind} plugin {name!r} does not load: {type(error).__name__}: {error}",
            remedy="`mpdit plugins` says which package it comes from",
        ) from error
    if not dataclasses.is_dataclass(loaded) or not isinstance(loaded, type):
        raise UserError(f"{kind} plugin {name!r} is {loaded!r}", expected="a dataclass (see mpdit_core.api)")
    return loaded


def build(kind: Kind, name: str, options: Mapping[str, Any] | None = None) -> Any:
    """An instance of plugin `name` with `options` checked against its fields.

    Raises:
        UserError: as `load`, or an option that does not exist or does not fit.
    """
    loaded = load(kind, name)
    adapter = TypeAdapter(_strict(loaded))
    try:
        return loaded(**{k: getattr(adapter.validate_python(dict(options or {})), k) for k in (options or {})})
    except ValidationError as error:
        known = [f.name for f in dataclasses.fields(loaded) if f.init]
        raise settings_error(error, origin=f"{kind.removesuffix('s')} {name}", known=known) from None


def _strict(loaded: type) -> type:
    return type(loaded.__name__, (loaded,), {"__pydantic_config__": ConfigDict(extra="forbid", strict=True)})
