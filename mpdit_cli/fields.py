"""An options class becomes the parameters of a command: each field one flag, its help and default from the field.

    @options_command(SampleOptions)
    def command(options: SampleOptions) -> None:
        \"\"\"Make images with a model.\"\"\"

`--set KEY=VALUE` reaches every field by its name, and the options of plugins by `TABLE.KEY`; a flag wins over it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mpdit_core.errors import UserError
from mpdit_core.settings import (
    Options,
    Spelling,
    merge,
    parse_assignments,
    parse_field,
    plain_type,
    spelling_of,
    validate,
)

NOT_GIVEN = None
PANELS = ("What", "Sampling", "Pictures", "Measuring", "Output", "Other work", "Running")
"""Groups of options in --help, in this order."""

Nproc = Annotated[
    str,
    typer.Option(
        "--nproc",
        metavar="N|auto",
        help="Number of processes on this machine; auto: one per GPU (default: auto).",
        rich_help_panel="Running",
    ),
]


def options_command(kind: type[Options], *, name: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the function's first argument, `options`, is read from parameters made of the fields of `kind`.

    Other arguments of the function stay parameters of the command. `--set`, `--json` and `--quiet` are added.

    Args:
        name: of the command, for messages; the class says it if not given.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for n, p in inspect.signature(command, eval_str=True).parameters.items()
            if n != "options"
        ]

        def run(**given: Any) -> None:
            extra = {p.name: given.pop(p.name) for p in own}
            assignments = given.pop("set_", None) or ()
            for flag in ("json", "quiet"):  # app.main has read them before the command runs
                given.pop(flag, None)
            command(read_options(kind, given, assignments, origin=name), **extra)

        parameters = parameters_of(kind)
        run.__signature__ = inspect.Signature([*parameters, *own, *_common()])  # pyright: ignore[reportFunctionMemberAccess]
        run.__doc__ = command.__doc__
        run.__name__ = command.__name__
        return run

    return decorate


def parameters_of(kind: type[Options]) -> list[inspect.Parameter]:
    """A Typer parameter for each field that is typed on a command line. None stands for "not given" everywhere."""
    fields = [(n, info) for n, info in kind.model_fields.items() if spelling_of(info).typed]
    fields.sort(key=lambda field: _place(spelling_of(field[1])))
    return [_parameter(n, info) for n, info in fields]


def _place(spelling: Spelling) -> int:
    """Arguments first, then the groups of options in the order of `PANELS`."""
    return -1 if spelling.argument else PANELS.index(spelling.panel)


def read_options(
    kind: type[Options], given: Mapping[str, Any], assignments: typing.Iterable[str] = (), *, origin: str = ""
) -> Any:
    """The options that a command line gives: values of flags, over what `--set` says.

    Args:
        given: by field name; None or empty: not given.
        assignments: `KEY=VALUE`.

    Raises:
        UserError: a key, type or value that the class does not take.
    """
    values = _by_field(kind, parse_assignments(assignments))
    for key, value in given.items():
        if value is not NOT_GIVEN and value != []:
            values = merge(values, {key: parse_field(kind, key, value)})
    return validate(kind, values, origin=origin)


def default_text(info: FieldInfo) -> str:
    """The default as --help and docs/cli.md show it; empty for a flag that is off and for what must be given."""
    spelling = spelling_of(info)
    default = info.get_default(call_default_factory=True)
    if default is PydanticUndefined or default is False or (default == () and not spelling.chosen):
        return ""
    if default is None or default == ():
        return spelling.chosen
    if default is True:
        return "on"
    if isinstance(default, tuple):
        return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def help_text(info: FieldInfo) -> str:
    """The field's description as a sentence, and its default: "Number of images to sample (default: 16)."."""
    text, default = info.description or "", default_text(info)
    return text[:1].upper() + text[1:] + (f" (default: {default})." if default else ".")


def flags_of(name: str, info: FieldInfo) -> list[str]:
    """How a field is typed: `["--num-samples", "-n"]`; a switch that is on by default has a `--no-` form too."""
    spelling = spelling_of(info)
    flags = list(spelling.flags) or [f"--{name.replace('_', '-')}"]
    if plain_type(info) is bool and info.default is not False:
        return [f"{flags[0]}/--no-{flags[0].removeprefix('--')}"]
    return flags


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    spelling = spelling_of(info)
    shared: dict[str, Any] = {"help": help_text(info), "show_default": False}
    if spelling.metavar:
        shared["metavar"] = spelling.metavar
    kind = plain_type(info)
    annotation: Any = kind if kind in (bool, int, float, Path) or get_origin(kind) is Literal else str
    if spelling.repeated:
        annotation = list[str]
    for bound, key in ((_bound(info, "ge"), "min"), (_bound(info, "le"), "max")):
        if bound is not None and annotation in (int, float):
            shared[key] = bound
    if spelling.argument:
        required = info.is_required()
        made = typer.Argument(**shared)
        default = inspect.Parameter.empty if required else None
        return _keyword(name, Annotated[annotation if required else annotation | None, made], default)
    made = typer.Option(*flags_of(name, info), rich_help_panel=spelling.panel, **shared)
    return _keyword(name, Annotated[annotation | None, made], None)


def _common() -> list[inspect.Parameter]:
    running = {"rich_help_panel": "Running"}
    set_ = typer.Option(
        "--set", metavar="KEY=VALUE", help="Any option or setting, by its key; values are TOML. Repeatable.", **running
    )
    json = typer.Option("--json", help="One JSON object per line on stdout; text for people goes to stderr.", **running)
    quiet = typer.Option("--quiet", help="Only warnings, errors and the result.", **running)
    return [
        _keyword("set_", Annotated[list[str] | None, set_], None),
        _keyword("json", Annotated[bool, json], False),
        _keyword("quiet", Annotated[bool, quiet], False),
    ]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _bound(info: FieldInfo, name: str) -> float | None:
    """A bound of a number, from the field or from its type (`PositiveInt` is an int above 0)."""
    found = next((getattr(m, name) for m in info.metadata if getattr(m, name, None) is not None), None)
    above = next((m.gt for m in info.metadata if getattr(m, "gt", None) is not None), None)
    return above + 1 if found is None and name == "ge" and isinstance(above, int) else found


def _by_field(kind: type[Options], tree: Mapping[str, Any]) -> dict[str, Any]:
    """What `--set` gave, by field: `{"sampler": {"grid": …}}` → `{"sampler_options": {"grid": …}}`."""
    tables = {spelling_of(info).table: name for name, info in kind.model_fields.items() if spelling_of(info).table}
    if "*" in tables:
        return {tables["*"]: dict(tree)} if tree else {}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key in tables and isinstance(value, Mapping):
            values = merge(values, {tables[key]: value})
        elif key in kind.model_fields:
            values = merge(values, {key: parse_field(kind, key, value)})
        else:
            known = [f"{table}.KEY" for table in tables] + [n for n in kind.model_fields if n not in tables.values()]
            raise UserError(f"--set {key}: no such option", code="unknown-key", expected=", ".join(known))
    return values
