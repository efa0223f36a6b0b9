"""No option name, default or help text is written twice: shared options are inherited."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpdit_cli.app import build_app
from mpdit_cli.fields import flags_of
from mpdit_core.config import RunConfig
from mpdit_core.settings import Options, Result, Settings, tables_of

CLI = Path(__file__).parents[2] / "mpdit_cli"


@pytest.fixture(scope="module", autouse=True)
def every_command_is_imported():
    build_app()


def classes(base: type[Settings] = Settings) -> Iterator[type[Settings]]:
    """All classes of values that derive from `base` in the program itself."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith(("mpdit_core.", "mpdit_cli.")):  # not packages that other tests write
            yield kind
        yield from classes(kind)


def parts_of(kind: type[Settings]) -> Iterator[type[Settings]]:
    """A class of values and the classes within it."""
    yield kind
    for info in kind.model_fields.values():
        for table in tables_of(info):
            assert issubclass(table, Settings)
            yield from parts_of(table)


def own_fields(kind: type[Settings]) -> list[str]:
    """The fields a class declares itself."""
    return [name for name in vars(kind).get("__annotations__", {}) if name in kind.model_fields]


def typer_declarations() -> Iterator[tuple[list[str], str]]:
    """Flags and help of every `typer.Option` and `typer.Argument` that is written out."""
    for path in CLI.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("typer.Option", "typer.Argument"):
                flags = [str(flag.value) for flag in call.args if isinstance(flag, ast.Constant)]
                yield flags, "".join(ast.unparse(k.value) for k in call.keywords if k.arg == "help")


def repeated(texts: Iterator[str]) -> list[str]:
    return [text for text, count in Counter(texts).items() if text and count > 1]


def test_no_help_text_of_an_option_stands_twice():
    options = {Options, *classes(Options), *parts_of(RunConfig)}
    assert repeated(kind.model_fields[name].description or "" for kind in options for name in own_fields(kind)) == []
    assert repeated(text for _, text in typer_declarations()) == []


def test_no_flag_is_written_twice():
    """Flags of options classes follow from the names of their fields; `flags_of` writes them all."""
    written = [flag for flags, _ in typer_declarations() for flag in flags]
    assert repeated(iter(written)) == []
    of_fields = {
        flag for kind in classes(Options) for name, i in kind.model_fields.items() for flag in flags_of(name, i)
    }
    assert set(written) & of_fields <= {"--out"}  # `plugins new` has arguments of its own


def test_no_class_repeats_what_it_inherits():
    found = [
        (kind.__qualname__, name)
        for kind in classes()
        for name in own_fields(kind)
        if any(name in parent.model_fields for parent in kind.__bases__ if issubclass(parent, Settings))
    ]
    assert found == []


def test_every_option_and_every_result_is_described():
    found = [
        (kind.__qualname__, name)
        for kind in {*classes(Options), *classes(Result), *parts_of(RunConfig)}
        for name, info in kind.model_fields.items()
        if not info.description and not tables_of(info)
    ]
    assert found == []
