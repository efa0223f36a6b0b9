"""Makes the parameters of a command from an options class: a flag per field, with the field's help and default.

    @options_command(SampleOptions)
    def command(options: SampleOptions) -> None: ...  # its docstring is the command's help

`--set KEY=VALUE` reaches every field by its name, and the options of plugins by `TABLE.KEY`; a flag has precedence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
import typer.core
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mpdit_cli.completion import completer
from mpdit_core.errors import UserError, did_you_mean
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
from mpdit_core.size import Size

T = TypeVar("T", bound=Options)

PANELS = ("What", "Measuring", "Sampling", "Views", "Output", "Other work", "Running")
"""Groups of options in --help, in this order."""

OTHER_FORMS = {"num_samples": "-n", "resolution": "--res", "licence": "--license"}
"""A second spelling of a field's flag, the same in every command."""

MAX_CHOICES_WIDTH = 26  # characters

RUNNING: dict[str, Any] = {"rich_help_panel": "Running"}


def _processes(default: str) -> Any:
    text = f"Number of processes on this machine; auto: one per GPU, one on a CPU (default: {default})."
    return typer.Option("--nproc", metavar="N|auto", help=text, show_default=False, **RUNNING)


Nproc = Annotated[str, _processes("auto")]
NprocOne = Annotated[str, _processes("1")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any option or setting, by its key; the value is TOML. Repeatable.",
        **RUNNING,
    ),
]
# These two are read by app.main before the command runs, so that parsing errors respect them.
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object per line on stdout, and text for people on stderr.", **RUNNING),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print only warnings and errors; with --json also the result.", **RUNNING)
]


class Command(typer.core.TyperCommand):
    """A command that lists --help at the end, with the other options that all commands have."""

    def get_help_option(self, ctx: Any) -> Any:
        option: Any = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = RUNNING["rich_help_panel"]
        return option

    def get_params(self, ctx: Any) -> Any:
        return without_metavars(super().get_params(ctx))


class Group(typer.core.TyperGroup):
    """A command with subcommands."""

    def get_params(self, ctx: Any) -> Any:
        return without_metavars(super().get_params(ctx))


def without_metavars(parameters: list[Any]) -> list[Any]:
    """The parameters, with nothing after a switch in --help; Typer would show `<bool>`."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


def options_command(kind: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the function's first argument, `options`, is read from parameters made of the fields of `kind`.

    Other arguments of the function stay parameters of the command. `--set`, `--json` and `--quiet` are added.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(command, eval_str=True).parameters.values()
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in declared if p.name != "options"]
        common = [_keyword("assignments", Set, None), _keyword("json", Json, False), _keyword("quiet", Quiet, False)]
        context = _keyword("context", typer.Context, inspect.Parameter.empty)

        def run(*, context: typer.Context, assignments: list[str] | None, **given: Any) -> None:
            extra = {p.name: given.pop(p.name) for p in own}
            values = {name: value for name, value in given.items() if name in kind.model_fields}
            command(read_options(kind, values, assignments or (), origin=context.command_path), **extra)

        run.__signature__ = inspect.Signature([context, *parameters_of(kind), *own, *common])
        run.__doc__ = "\n\n".join(" ".join(text.split()) for text in (command.__doc__ or "").split("\n\n"))
        return run

    return decorate


def parameters_of(kind: type[Options]) -> list[inspect.Parameter]:
    """A Typer parameter for each field that can be typed on a command line. None means "not given"."""
    fields = [(name, info) for name, info in kind.model_fields.items() if spelling_of(info).typed]
    fields.sort(key=lambda field: _place(spelling_of(field[1])))
    return [_parameter(name, info) for name, info in fields]


def _place(spelling: Spelling) -> int:
    """Arguments first, then the groups of options in the order of `PANELS`."""
    return -1 if spelling.argument else PANELS.index(spelling.panel)


def read_options(
    kind: type[T], given: Mapping[str, Any], assignments: Iterable[str] = (), *, origin: str = "options"
) -> T:
    """The options that a command line gives: values of flags, over those of `--set`.

    Args:
        given: by field name; None or an empty list: not given.
        assignments: `KEY=VALUE`.
        origin: the command, for messages.

    Raises:
        UserError: a key, type or value that the class does not take (`unknown-key`, `invalid-value`).
    """
    values = _by_field(kind, parse_assignments(assignments), origin)
    for key, value in given.items():
        if value is not None and value != []:
            values[key] = parse_field(kind, key, value)
    return validate(kind, values, origin=origin)


def default_text(info: FieldInfo) -> str:
    """The default as --help and docs/cli.md show it; empty for a flag that is off and for what must be given."""
    spelling = spelling_of(info)
    default = info.get_default(call_default_factory=True)
    if default is PydanticUndefined or default is False:
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
    *others, last = choices_of(info) or [""]
    listed = "" if fits(choices_of(info)) else f": {', '.join(others)} or {last}"
    return text[:1].upper() + text[1:] + listed + (f" (default: {default})." if default else ".")


def flags_of(name: str, info: FieldInfo) -> list[str]:
    """How a field is typed: `["--num-samples", "-n"]`; a switch has a `--no-` form too, unless it is off by default."""
    flag = name.replace("_", "-")
    if plain_type(info) is bool and info.default is not False:
        return [f"--{flag}/--no-{flag}"]
    return [f"--{flag}", *([OTHER_FORMS[name]] if name in OTHER_FORMS else [])]


def metavar_of(info: FieldInfo) -> str:
    """What follows a flag in --help and docs/cli.md; nothing for a switch."""
    words = {int: "INTEGER", float: "NUMBER", Path: "PATH", Size: "SIDE|HxW", bool: ""}
    if spelling_of(info).metavar:
        return spelling_of(info).metavar
    if choices := choices_of(info):
        return "|".join(choices) if fits(choices) else "NAME"
    return words.get(plain_type(info), "TEXT")


def choices_of(info: FieldInfo) -> list[str]:
    """The values that a field is restricted to; none for a field of any other type."""
    kind = plain_type(info)
    return list(map(str, get_args(kind))) if get_origin(kind) is Literal else []


def fits(choices: Sequence[str]) -> bool:
    """Whether --help lists these after the flag; a longer list would be broken within words at 80 columns."""
    return len("|".join(choices)) <= MAX_CHOICES_WIDTH


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    spelling, kind = spelling_of(info), plain_type(info)
    annotation: Any = kind if kind in (bool, int, float, Path) or get_origin(kind) is Literal else str
    if spelling.repeated:
        annotation = list[str]
    shown: dict[str, Any] = {
        "help": help_text(info),
        "show_default": False,
        "metavar": metavar_of(info),
        "autocompletion": completer(name) if name != "classes" or kind is not Path else None,
    }
    if spelling.argument and info.is_required():
        return _keyword(name, Annotated[annotation, typer.Argument(**shown)], inspect.Parameter.empty)
    option = typer.Option(*flags_of(name, info), rich_help_panel=spelling.panel, **shown)
    return _keyword(name, Annotated[annotation | None, typer.Argument(**shown) if spelling.argument else option], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _by_field(kind: type[Options], tree: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What `--set` gave, by field: `{"sampler": {"grid": …}}` → `{"sampler_options": {"grid": …}}`.

    A table `*` takes every other table, and every key that is not a field.
    """
    tables = {spelling_of(info).table: name for name, info in kind.model_fields.items() if spelling_of(info).table}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        table = tables.get(key, tables.get("*")) if isinstance(value, Mapping) else None
        if table:
            values = merge(values, {table: {key: value} if table == tables.get("*") else value})
        elif key in kind.model_fields:
            values[key] = parse_field(kind, key, value)
        elif "*" in tables:
            values = merge(values, {tables["*"]: {key: value}})
        else:
            known = [name for name in kind.model_fields if name not in tables.values()]
            raise UserError(
                f"{origin}: there is no option {key}",
                code="unknown-key",
                expected=", ".join([*(f"{table}.KEY" for table in tables), *known]),
                remedy=did_you_mean(key, [*known, *tables]),
            )
    return values
