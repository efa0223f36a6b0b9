"""The base of configurations, options and results, and how values are read into their fields.

A field is written once, with its name, type, default, bounds and description. The command line, `--set`, `--sweep`,
TOML files, docs/cli.md and the records take them from there. To add an option: one field, made by `setting`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from mpdit_core.errors import UserError, did_you_mean


class Settings(BaseModel):
    """Immutable values with descriptions: no unknown keys, no silent conversion, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class Options(Settings):
    """The options of a job. One class per command, in the `options.py` of its package."""


class Result(Settings):
    """What a job returns. The CLI prints it as a table for people, or as the last JSON line."""

    model_config = ConfigDict(allow_inf_nan=True)


S = TypeVar("S", bound=Settings)

UNIONS = (typing.Union, types.UnionType)
MAX_DEPTH = 16  # levels of tables and lists, or parts of a dotted key
KEY_DOT = re.compile(r"""\.(?=(?:[^"]*"[^"]*")*[^"]*$)""")  # not within quotes: `objective."./mine.py:Mine".weight`
MAX_INTEGER = 2**63 - 1  # the limit of TOML and of torch


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a field is typed on a command line, whether a resumed run may change it, and whether `--sweep` may."""

    metavar: str = ""
    argument: bool = False  # positional
    panel: str = "What"  # the group of options in --help
    chosen: str = ""  # the default that --help shows where None lets the job choose
    table: str = ""  # a dict filled by `--set TABLE.KEY=VALUE`; "*" takes every key
    repeated: bool = False  # a tuple given by one flag per value, not by one list with commas
    typed: bool = True  # False: has no flag, for Python and --set only
    resumable: bool = False
    sweepable: bool = False


SPELLING = "mpdit"  # key under which a field keeps its `Spelling` in `json_schema_extra`


def setting(default: Any, description: str, *, strict: bool | None = None, **more: Any) -> Any:
    """A field of a `Settings` class. `more` are bounds for pydantic's `Field`, or attributes of `Spelling`.

    Args:
        default: the default value; `...` for a field that must be given.
        description: a noun phrase, then the unit: "Number of images to sample".
        strict: False for a tuple or path that may be given as a list or text.
    """
    spelling = {key: more.pop(key) for key in list(more) if key in Spelling.__dataclass_fields__}
    extra: dict[str, Any] = {SPELLING: Spelling(**spelling)}
    return Field(default, description=description, strict=strict, json_schema_extra=extra, **more)


class DeviceOptions(Options):
    """Where a job computes."""

    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "device to compute on", panel="Running")


def spelling_of(field: FieldInfo) -> Spelling:
    """The `Spelling` of a field; where the field has none, the defaults, which are those of a plain flag."""
    extra = field.json_schema_extra
    found = extra.get(SPELLING) if isinstance(extra, dict) else None
    return found if isinstance(found, Spelling) else Spelling()


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["model.width=768", …]` → `{"model": {"width": 768}}`. Values are TOML; a bare word is taken as a string.

    Raises:
        UserError: no `=`, an empty key, or a key that is both a value and a table (`not-an-assignment`); a number too
            large or tables too deep (`invalid-value`).
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        *tables, leaf = parts = [part.strip('"') for part in KEY_DOT.split(key)]
        if not equals or not all(parts):
            raise UserError(
                f"{shortened(assignment)} is not an assignment",
                code="not-an-assignment",
                expected="KEY=VALUE",
                remedy="e.g. --set train.batch_size=256",
            )
        if len(tables) >= MAX_DEPTH:
            raise _beyond_limits(f"{shortened(key)} has too many dots")
        node = tree
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                raise UserError(
                    f"{key}: {table} already has a value and cannot contain {leaf}", code="not-an-assignment",
                    expected=f"a value for {table} or for keys in it, not both",
                )  # fmt: skip
        node[leaf] = parse_value(text)
    return tree


def parse_value(text: str) -> Any:
    """The TOML value in `text`; the text itself where it is not TOML, such as a bare word.

    Raises:
        UserError: a number too large, or lists and tables too deep (`invalid-value`).
    """
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        raise _beyond_limits(f"{shortened(text)} has thousands of digits or brackets") from None
    _require_within_limits(tree, origin=shortened(text))
    return tree["value"] if tree.keys() == {"value"} else text.strip()


def _require_within_limits(value: Any, *, origin: str, key: str = "", depth: int = 0) -> None:
    """Raises `UserError` for NaN, huge integers and deep nesting, anywhere in a tree of values."""
    where = f"{origin or 'configuration refused'}: {shortened(key)}"
    if depth > MAX_DEPTH:
        raise _beyond_limits(f"{where} has too many nested tables or lists")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise _beyond_limits(f"{where} is an integer of more than 64 bits")
    if isinstance(value, float) and math.isnan(value):
        raise _beyond_limits(f"{where} is NaN")
    named = value.items() if isinstance(value, Mapping) else ()
    listed = value if isinstance(value, list | tuple) else ()
    for name, inner in [*named, *(("", each) for each in listed)]:
        _require_within_limits(inner, origin=origin, key=f"{key}.{name}".strip("."), depth=depth + 1)


def _beyond_limits(what: str) -> UserError:
    return UserError(
        what, code="invalid-value", expected=f"finite numbers, integers below 2^63, at most {MAX_DEPTH} levels"
    )


def shortened(text: str) -> str:
    """`text` for a message: on one line, printable, without its middle if it is long."""
    if len(text) > 80:
        text = f"{text[:40]} … {text[-20:]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def parse_field(kind: type[BaseModel], key: str, value: Any) -> Any:
    """A value as field `key` of `kind` takes it. Flags, `--set` and `--sweep` are all read by this function.

    Args:
        value: text, such as `0.1,0.8` for a pair or `fid,is` for a list of words; or a TOML value, which is kept,
            except that a number becomes text if the field takes text.

    Raises:
        UserError: another number of parts than the field has (`invalid-value`). Types are checked by `validate`.
    """
    annotation = plain_type(kind.model_fields[key])
    if not isinstance(value, str):
        return str(value) if annotation is str and isinstance(value, int | float) else value
    if get_origin(annotation) is not tuple:
        return _parse_plain(annotation, value)
    inner = get_args(annotation)
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if Ellipsis not in inner and len(parts) != len(inner):
        expected = spelling_of(kind.model_fields[key]).metavar or f"{len(inner)} values with commas between them"
        raise UserError(f"{key} = {value}", code="invalid-value", expected=expected)
    return [_parse_plain(inner[0], part) for part in parts]


def _parse_plain(annotation: Any, text: str) -> Any:
    """`text` as a bool, int or float if the type asks for one and it can be read so; `.5` and `1e3` are numbers too."""
    if annotation is bool:
        return parse_value(text)
    for number in (int, float) if annotation in (int, float) else ():
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def _types_of(info: FieldInfo) -> list[Any]:
    """The types that a field takes, without None and pydantic's annotations."""
    kinds = get_args(info.annotation) if get_origin(info.annotation) in UNIONS else (info.annotation,)
    return [get_args(k)[0] if get_origin(k) is Annotated else k for k in kinds if k is not type(None)]


def plain_type(info: FieldInfo) -> Any:
    """The type of a field without None and pydantic's annotations; of a union: text if it is one, else the first."""
    kinds = _types_of(info)
    return str if str in kinds else kinds[0]


def tables_of(info: FieldInfo) -> list[type[BaseModel]]:
    """The classes that a field may hold: one, several for a union, or none for a plain value."""
    return [kind for kind in _types_of(info) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises `UserError` if it is missing or not TOML, or as `parse_value`."""
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path} does not exist", code="no-such-file", expected="a TOML configuration file") from None
    except (OSError, ValueError, RecursionError) as error:  # not text, not TOML, or thousands of digits or brackets
        raise UserError(
            f"{path} is not TOML: {error}", code="invalid-toml", expected="tables [model], [objective], [train], …"
        ) from error
    _require_within_limits(tree, origin=str(path))
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, table by table."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"steps": 3}}` → `{"train.steps": 3}`; a key with other characters is quoted, as it is typed."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + _toml_key(str(name))
        flat |= flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat


def validate(kind: type[S], values: Any, *, origin: str = "") -> S:
    """`values` as a `kind`. Raises `UserError` with one line per mistake, each naming its dotted key."""
    _require_within_limits(values, origin=origin)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise settings_error(error, origin=origin, known=dotted_keys(kind)) from None


def settings_error(error: ValidationError, *, origin: str = "", known: Iterable[str] = ()) -> UserError:
    """A pydantic error for people: keys, given and expected values. Its code is `unknown-key` or `invalid-value`."""
    lines, known, code = [], list(known), "invalid-value"
    for problem in error.errors():
        key = shortened(".".join(str(part) for part in problem["loc"] if str(part)[:1] != "<"))  # the tag of a union
        table, given = key.rpartition(".")[0], problem["input"]
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            code = "unknown-key"
            beside = [other for other in known if other.rpartition(".")[0] == table] or known
            hint = did_you_mean(key, known, otherwise=f"known here: {', '.join(beside)}")
            lines.append(f"unknown key {key} ({f'only with another {table}.name' if key in known else hint})")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        elif problem["type"] == "dict_type":
            lines.append(f"{key} = {_shown(given)}: expected a table, {key}.KEY = VALUE")
        elif problem["type"] == "union_tag_invalid":
            lines.append(f"{key}.name: expected one of {re.sub('[<>]', '', problem.get('ctx', {})['expected_tags'])}")
        else:
            text = problem["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(given, dict) else f" = {_shown(given)}"
            lines.append(f"{key}{shown}: {text[:1].lower()}{text[1:]}")
    return UserError((f"{origin}: " if origin else "configuration refused: ") + "; ".join(lines), code=code)


def _shown(given: Any) -> str:
    try:
        return shortened(json.dumps(given, default=str))
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists of thousands of levels
        return f"a very large {type(given).__name__}"


def dotted_keys(kind: type[BaseModel]) -> list[str]:
    """All keys of a class and of the classes within it: `["preset", "model.width", …]`."""
    return [key for key, _ in dotted_fields(kind)]


def dotted_fields(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, FieldInfo]]:
    """`dotted_keys` with the field of each."""
    found: list[tuple[str, FieldInfo]] = []
    for name, info in kind.model_fields.items():
        tables = tables_of(info)
        for table in tables:
            found += dotted_fields(table, f"{prefix}{name}.")
        if not tables:
            found.append((prefix + name, info))
    return list(dict(found).items())  # classes of a union may share keys


def to_toml(settings: Settings, *, origins: Mapping[str, str] | None = None) -> str:
    """The configuration as commented TOML that `read_toml` reads back (None is written as a comment).

    Args:
        origins: where each value came from, by dotted key; then the comments say this, and not what the fields are.
    """
    described = {key: info.description or "" for key, info in dotted_fields(type(settings))}

    def lines_of(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
        plain: list[str] = []
        tables: list[str] = []
        for name, value in table.items():
            key = ".".join(map(_toml_key, (*path, name)))
            said = described.get(key, "")
            if origins is not None:
                said = f"from {origins[key]}" if key in origins else "default"
            comment = f"  # {said}" if said else ""
            if isinstance(value, Mapping):
                tables += ["", f"[{key}]", *lines_of(value, (*path, name))]
            elif value is None:
                plain.append(f"# {name} ={comment}")
            else:
                plain.append(f"{name} = {toml_value(value)}{comment}")
        return plain + tables

    return "\n".join(lines_of(settings.model_dump(mode="json"), ())) + "\n"


def toml_value(value: Any, *, comma: str = ", ") -> str:
    """A value in TOML, on one line."""
    if isinstance(value, Mapping):
        pairs = (f"{_toml_key(key)}={toml_value(inner, comma=comma)}" for key, inner in value.items())
        return "{" + comma.join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + comma.join(toml_value(inner, comma=comma) for inner in value) + "]"
    return json.dumps(value)


def _toml_key(name: str) -> str:
    """A key of TOML, quoted if it has characters that a bare key may not have."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def changes(old: Settings, new: Settings) -> dict[str, tuple[Any, Any]]:
    """`{"train.batch_size": (256, 512), …}`: the dotted keys whose values differ, with both values."""
    flat_old, flat_new = flatten(old.model_dump()), flatten(new.model_dump())
    keys = sorted(flat_old | flat_new)
    return {key: (flat_old.get(key), flat_new.get(key)) for key in keys if flat_old.get(key) != flat_new.get(key)}
