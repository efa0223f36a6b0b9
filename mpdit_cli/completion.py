"""Completes values in the shell: presets, samplers, runs, latents, class names of the model that is given.

The name of the field decides what is offered, so it is the same in every command. To add one: a function from the
command's context to the values, and its row in `OFFERED`. Torch-free, because the shell waits.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from mpdit_core.data.manifest import MANIFEST
from mpdit_core.errors import UserError
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.plugins import names
from mpdit_core.presets import preset_names
from mpdit_core.runtime.files import read_json

Offer = Callable[[typer.Context], list[str]]


def completer(field: str) -> Callable[..., list[str]] | None:
    """A function that Typer calls for the values of `field` that begin with the typed text; None: files are offered."""
    offered = OFFERED.get(field)
    if offered is None:
        return None

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        begun = incomplete.rpartition(",")[2] if field == "classes" else incomplete  # classes: a list with commas
        before = incomplete.removesuffix(begun)
        return [before + value for value in offered(ctx) if value.startswith(begun)]

    return complete


def class_names(context: typer.Context) -> list[str]:
    """The classes of the model that is given: names, and numbers where a name has spaces or commas."""
    given = [context.params.get("model"), context.params.get("what"), *context.args]  # args: before an unfinished flag
    folder = Path(next((word for word in given if word), ""))
    found: Iterable[str] = ()
    with contextlib.suppress(UserError, KeyError, TypeError, AttributeError):
        if RunFolder.exists(folder):
            found = RunFolder(folder).latents().class_names
        else:
            found = read_json(folder / "config.json")["latents"]["class_names"]
    return ["all", "random", *(name if re.fullmatch(r"[\w.-]+", name) else str(n) for n, name in enumerate(found))]


def runs(_: typer.Context) -> list[str]:
    return sorted(str(path) for path in Path("runs").glob("*") if RunFolder.exists(path))


def models(context: typer.Context) -> list[str]:
    """Runs, and the folders that `mpdit import` and `mpdit export` write by default."""
    return [*runs(context), *sorted(str(path.parent) for path in Path("models").glob("*/config.json"))]


def evaluated(context: typer.Context) -> list[str]:
    return [*models(context), *sorted(str(path.parent) for path in Path("samples").glob("*/samples.json"))]


def latents(_: typer.Context) -> list[str]:
    return sorted(str(path.parent) for path in Path("latents").glob(f"*/{MANIFEST}"))


OFFERED: dict[str, Offer] = {
    "preset": lambda _: preset_names(),
    "sampler": lambda _: names("samplers"),
    "features": lambda _: names("features"),
    "teacher": lambda _: ["latents", *names("features")],
    "source": lambda _: names("datasets"),
    "classes": class_names,
    "model": models,
    "what": evaluated,
    "guide": models,
    "init_from": models,
    "run": runs,
    "latents": latents,
}
