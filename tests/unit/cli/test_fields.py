"""An options class as the parameters of a command: every kind of field, `--set`, help, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from pydantic import PositiveInt
from typer.testing import CliRunner

from mpdit_cli.fields import default_text, flags_of, help_text, options_command, read_options
from mpdit_core.errors import UserError
from mpdit_core.settings import Options, parse_field, setting


class Cake(Options):
    """Every kind of field."""

    flavour: str = setting(..., "what it tastes of", argument=True, metavar="FLAVOUR")
    layers: PositiveInt = setting(3, "number of layers", panel="Sampling")
    height: float | None = setting(None, "height in cm", gt=0, chosen="by the layers")
    icing: bool = setting(False, "cover it with icing")
    candles: bool = setting(True, "put candles on it")
    cream: bool | None = setting(None, "add cream", chosen="on, for two layers")
    form: Literal["round", "square"] = setting("round", "form of the tin")
    span: tuple[float, float] = setting((0.0, 1.0), "part to eat", strict=False, metavar="LO,HI")
    fruits: tuple[Literal["apple", "pear"], ...] = setting(("apple",), "fruits in it", strict=False)
    classes: str | tuple[str | int, ...] = setting("all", "guests")
    notes: tuple[str, ...] = setting((), "remarks", strict=False, repeated=True)
    out: Path | None = setting(None, "plate", strict=False, panel="Output", chosen="a new one")
    oven: str = setting("gas", "name of the oven")
    oven_options: dict[str, Any] = setting({}, "options of the oven", table="oven", typed=False)
    hidden: int = setting(7, "for Python and --set", typed=False)
    num_samples: PositiveInt | None = setting(None, "number of pieces", chosen="all")


class Recipe(Options):
    """With a table that takes every key."""

    steps: PositiveInt | None = setting(None, "number of steps", chosen="by the book")
    settings: dict[str, Any] = setting({}, "values of the configuration", table="*", typed=False)


def bake(*words: str, kind: type[Options] = Cake) -> Any:
    """The options that a command line gives. Raises what the command raises."""
    found: list[Any] = []

    @options_command(kind)
    def command(options, loud: bool = False) -> None:
        """Bake."""
        found.append((options, loud))

    app = typer.Typer(add_completion=False)
    app.command()(command)
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return found[0][0] if found else result.output


def test_nothing_given_means_the_defaults():
    assert bake("plum") == Cake(flavour="plum")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--layers", "5"], {"layers": 5}),
        (["--height", "2.5"], {"height": 2.5}),
        (["--icing"], {"icing": True}),
        (["--no-candles"], {"candles": False}),
        (["--cream"], {"cream": True}),
        (["--no-cream"], {"cream": False}),
        (["--form", "square"], {"form": "square"}),
        (["--span", "0.1,0.8"], {"span": (0.1, 0.8)}),
        (["--fruits", "apple, pear"], {"fruits": ("apple", "pear")}),
        (["--classes", "3,7"], {"classes": "3,7"}),
        (["--notes", "a,b", "--notes", "c"], {"notes": ("a,b", "c")}),
        (["--out", "here"], {"out": Path("here")}),
        (["-n", "4"], {"num_samples": 4}),
        (["--set", "layers=5"], {"layers": 5}),
        (["--set", "span=[0.1, 0.8]"], {"span": (0.1, 0.8)}),
        (["--set", "span=0.1,0.8"], {"span": (0.1, 0.8)}),
        (["--set", "fruits=pear"], {"fruits": ("pear",)}),
        (["--set", "hidden=8"], {"hidden": 8}),
        (["--set", "oven.heat=180", "--set", "oven.fan.on=true"], {"oven_options": {"heat": 180, "fan": {"on": True}}}),
        (["--set", "layers=5", "--layers", "6"], {"layers": 6}),  # a flag wins
        (["--layers", "6", "--set", "layers=5"], {"layers": 6}),
    ],
)
def test_what_a_command_line_gives(words, values):
    assert bake("plum", *words) == Cake(flavour="plum", **values)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--layers", "0"], "invalid-value"),
        (["--height", "-1"], "invalid-value"),
        (["--span", "0.1"], "invalid-value"),
        (["--span", "a,b"], "invalid-value"),
        (["--fruits", "plum"], "invalid-value"),
        (["--set", "layers=many"], "invalid-value"),
        (["--set", "layer=5"], "unknown-key"),
        (["--set", "ovn.heat=5"], "unknown-key"),
        (["--set", "layers"], "not-an-assignment"),
    ],
)
def test_what_is_refused(words, code):
    with pytest.raises(UserError) as caught:
        bake("plum", *words)
    assert caught.value.code == code


def test_an_unknown_key_is_answered_with_the_nearest():
    with pytest.raises(UserError) as caught:
        bake("plum", "--set", "layer=5")
    assert "layers" in (caught.value.remedy or "")
    assert "oven.KEY" in (caught.value.expected or "")


def test_a_table_of_every_key_leaves_the_fields_their_own():
    made = bake("--set", "steps=3", "--set", "train.batch_size=8", "--set", "seed=1", kind=Recipe)
    assert made == Recipe(steps=3, settings={"train": {"batch_size": 8}, "seed": 1})


def test_from_python_without_a_command_line():
    assert read_options(Cake, {"flavour": "plum", "layers": None, "notes": []}) == Cake(flavour="plum")
    assert parse_field(Cake, "span", (0, 1)) == (0, 1)


@pytest.mark.parametrize(
    ("name", "flags", "default"),
    [
        ("layers", ["--layers"], "3"),
        ("height", ["--height"], "by the layers"),
        ("icing", ["--icing"], ""),
        ("candles", ["--candles/--no-candles"], "on"),
        ("cream", ["--cream/--no-cream"], "on, for two layers"),
        ("span", ["--span"], "0,1"),
        ("fruits", ["--fruits"], "apple"),
        ("notes", ["--notes"], ""),
        ("num_samples", ["--num-samples", "-n"], "all"),
        ("flavour", ["--flavour"], ""),
    ],
)
def test_flags_and_defaults_of_a_field(name, flags, default):
    info = Cake.model_fields[name]
    assert (flags_of(name, info), default_text(info)) == (flags, default)
    assert help_text(info).endswith(f"(default: {default})." if default else ".")


def test_help_shows_the_groups_in_their_order():
    shown = bake("--help")
    assert [shown.index(panel) for panel in ("What", "Sampling", "Output", "Running")] == sorted(
        shown.index(panel) for panel in ("What", "Sampling", "Output", "Running")
    )
    assert "--set" in shown
    assert "--hidden" not in shown
    assert "--loud" in shown
