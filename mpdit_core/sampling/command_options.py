"""Reading the options of sampling as people type them; `sample` and `eval-fid` share these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.settings import parse_assignments


def read_interval(text: str) -> tuple[float, float]:
    """`0.1,0.8` → (0.1, 0.8). Raises `UserError` for anything but two numbers; `Guidance` checks their order."""
    try:
        lo, hi = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--guidance-interval {text}", expected="LO,HI: two times t from 0 to 1", remedy="e.g. 0.1,0.8"
        ) from None
    return lo, hi


def read_sampler_options(assignments: Iterable[str]) -> dict[str, Any]:
    """`["grid=shifted", "sampler.shift=3"]` → {"grid": "shifted", "shift": 3}; the `sampler.` may be left out.

    Raises:
        UserError: no KEY=VALUE, another dotted key, or `num_steps`, which has a flag.
    """
    tree = parse_assignments(assignments)
    inner = tree.pop("sampler", {})
    options = tree | (inner if isinstance(inner, dict) else {"sampler": inner})
    for key, value in options.items():
        if isinstance(value, dict):
            raise UserError(f"--set {key}.…: not an option of a sampler", expected="KEY=VALUE or sampler.KEY=VALUE")
    if "num_steps" in options:
        raise UserError("--set num_steps=…", remedy="--num-steps N")
    return options


def choose_view(asked: Mapping[str, Any], *, format: str, by_class: bool, nproc: str) -> str:
    """Which picture of `mpdit sample` is meant: one of `asked` (flag to value, in words: sweep), or `samples`.

    Raises:
        UserError: more than one, or one together with an option that only a set of samples has.
    """
    views = [name for name, value in asked.items() if value]
    flags = {"interpolation": "interpolate"}
    named = [f"--{flags.get(name, name)}" for name in views]
    if not views:
        return "samples"
    if len(views) > 1:
        raise UserError(" and ".join(named) + " make pictures of their own", expected="one of them at a time")
    if format != "png" or by_class:
        other = "--by-class" if by_class else f"--format {format}"
        raise UserError(f"{other} with {named[0]}", expected="a plain set of samples, for this option")
    if nproc not in ("auto", "1"):
        raise UserError(f"--nproc {nproc} with {named[0]}", expected="one process, which is enough for one picture")
    return views[0]
