"""Varies options: `--sweep KEY=V1,V2,…` of `sample`, `eval-fid` and `train`.

A field that is `sweepable` may vary. `TABLE.KEY` is a value within a field that has a `table`, such as an option of the
sampler; a table `*` takes every dotted key, such as `train.learning_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TypeVar

from mpdit_core.errors import UserError, did_you_mean
from mpdit_core.settings import Options, merge, parse_assignments, parse_field, spelling_of, validate

O = TypeVar("O", bound=Options)  # noqa: E741


Axes = dict[str, tuple[str, ...]]
"""The keys of a sweep, each with its values as they were typed."""


def read_sweeps(texts: Sequence[str]) -> Axes:
    """`["guidance_scale=1,2", "guidance_interval=0,1;0.1,0.8"]` → two axes; `;` separates values that hold commas.

    Raises:
        UserError: a text is not KEY=V1,V2 (`not-a-sweep`), or a key or value is given twice (`swept-twice`).
    """
    axes: Axes = {}
    for text in texts:
        key, _, rest = text.partition("=")
        key = key.strip().replace("-", "_")
        values = tuple(part.strip() for part in rest.split(";" if ";" in rest else ",") if part.strip())
        if not key or not values:
            remedy = "e.g. --sweep guidance_scale=1,1.5,2"
            raise UserError(f"sweep {text}", code="not-a-sweep", expected="KEY=V1,V2,…", remedy=remedy)
        if key in axes:
            raise UserError(f"sweep {key} is given twice", code="swept-twice", expected=f"{key}=V1,V2,… once")
        if len(set(values)) < len(values):
            raise UserError(f"sweep {text} has a value twice", code="swept-twice", expected="each value once")
        axes[key] = values
    return axes


def combinations(axes: Axes) -> list[dict[str, str]]:
    """Every combination of values, by key; the last key varies fastest."""
    return [dict(zip(axes, texts, strict=True)) for texts in product(*axes.values())]


def with_value(options: O, key: str, text: str) -> O:
    """`options` with one of them set to the value in `text`.

    Raises:
        UserError: the option does not exist or cannot vary (`unknown-key`), or the value does not fit.
    """
    kind = type(options)
    spellings = {name: spelling_of(info) for name, info in kind.model_fields.items()}
    tables = {spelling.table: name for name, spelling in spellings.items() if spelling.sweepable and spelling.table}
    plain = [name for name, spelling in spellings.items() if spelling.sweepable and not spelling.table]
    table, dot, inner = key.partition(".")
    if dot and (table in tables or "*" in tables):
        name = tables.get(table) or tables["*"]
        given = parse_assignments([f"{inner if table in tables else key}={text}"])
        value = merge(getattr(options, name), given)
    elif key in plain:
        name, value = key, parse_field(kind, key, text)
    else:
        known = [*plain, *(f"{'TABLE' if table == '*' else table}.KEY" for table in tables)]
        raise UserError(
            f"sweep {key}: there is no such option to vary", code="unknown-key", expected=", ".join(known),
            remedy=did_you_mean(key, known),
        )  # fmt: skip
    values = {name: getattr(options, name) for name in kind.model_fields}
    return validate(kind, values | {name: value}, origin="sweep")


def with_values(options: O, values: Mapping[str, str]) -> O:
    """`options` with each of these keys set, one after the other. Raises `UserError` as `with_value`."""
    for key, text in values.items():
        options = with_value(options, key, text)
    return options
