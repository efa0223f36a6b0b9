"""The options of a plugin, its dataclass fields: checking values for them, and describing them."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mpdit_core.errors import UserError, did_you_mean
from mpdit_core.settings import Result, setting


class Option(Result):
    """One option of a plugin."""

    name: str = setting(..., "its key")
    type: str = setting(..., "its type, as the plugin writes it")
    default: str | None = setting(..., "its default as text; none: the option is required")
    description: str = setting("", "its description and bounds")


def option_types(loaded: type) -> dict[str, TypeAdapter]:
    """A check for each option. Raises any exception for a type that cannot be understood."""
    fields = [f.name for f in dataclasses.fields(loaded) if f.init]
    hints = get_type_hints(loaded, include_extras=True) if fields else {}
    return {name: TypeAdapter(hints[name]) for name in fields}


def checked_options(loaded: type, options: Mapping[str, Any], *, origin: str, name: str = "") -> dict[str, Any]:
    """`options` as the plugin's fields take them (so a list for a tuple).

    Args:
        origin: the plugin, for messages.
        name: the plugin as a user types it, by default the name of its class.

    Raises:
        UserError: one error for all wrong options (`unknown-key` or `invalid-value`).
    """
    fields = {f.name: f for f in dataclasses.fields(loaded) if f.init}
    adapters, checked, faults = option_types(loaded), {}, []
    for key, value in options.items():
        if key not in fields:
            hint = did_you_mean(key, fields, otherwise=f"known here: {', '.join(fields) or 'none'}")
            faults.append(f"unknown key {key} ({hint})")
            continue
        try:
            checked[key] = _checked(adapters[key], value)
        except ValidationError as error:
            reasons = {problem["msg"][:1].lower() + problem["msg"][1:] for problem in error.errors()}
            faults.append(f"{key} = {json.dumps(value, default=str)}: {'; '.join(sorted(reasons))}")
            continue
        if not _within(fields[key].metadata, checked[key]):
            faults.append(f"{key} = {checked[key]}: must be {_bounds(fields[key].metadata)}")
    faults += [f"{key} is missing" for key, f in fields.items() if default_text(f) is None and key not in options]
    if faults:
        raise UserError(
            f"{origin}: {'; '.join(faults)}",
            code="invalid-value" if options.keys() <= fields.keys() else "unknown-key",
            expected=f"its options: {', '.join(fields) or 'it has none'}",
            remedy=f"`mpdit plugins show {name or loaded.__name__}` describes them",
        )
    return checked


def _checked(adapter: TypeAdapter, value: Any) -> Any:
    """`value`, checked as JSON: text is not a number, but a list may stand for a tuple, text for a path or an enum."""
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError:
        return adapter.validate_json(json.dumps(value, default=str), strict=True)


def _within(metadata: Mapping[str, Any], value: Any) -> bool:
    if not isinstance(value, int | float):
        return True
    lo, hi = metadata.get("minimum"), metadata.get("maximum")
    return (lo is None or value >= lo) and (hi is None or value <= hi)


def _bounds(metadata: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "maximum": "at most"}
    return " and ".join(f"{word} {metadata[b]:g}" for b, word in words.items() if metadata.get(b) is not None)


def describe_options(loaded: type) -> tuple[Option, ...]:
    """The options of a plugin class, in the order of its fields."""
    described = []
    for f in dataclasses.fields(loaded):
        if f.init:
            kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
            text = "; ".join(part for part in (f.metadata.get("description", ""), _bounds(f.metadata)) if part)
            described.append(Option(name=f.name, type=kind, default=default_text(f), description=text))
    return tuple(described)


def summary_of(loaded: type) -> str:
    """The first paragraph of the class's own docstring (a dataclass without one gets its signature)."""
    text = inspect.cleandoc(loaded.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return "" if text.startswith(f"{loaded.__name__}(") else text


def default_text(field: dataclasses.Field) -> str | None:
    """The default in Python's notation; None for a required option."""
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    if field.default is dataclasses.MISSING:
        return None
    return repr(field.default) if isinstance(field.default, str) else str(field.default)
