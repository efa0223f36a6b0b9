"""The `mpdit sample` command line that makes the same images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from mpdit_core.sampling import SampleOptions, SamplingOptions
from mpdit_core.settings import Options, spelling_of


def sample_command(model: str, options: SamplingOptions, *, num_samples: int, device: str = "auto") -> str:
    """The command for a shell. Its image i is image i of the page."""
    more = {"model": model, "num_samples": num_samples, "device": device}
    asked = SampleOptions(**options.sampling_values() | more)
    return shlex.join(["mpdit", "sample", model, *flags(asked)])


def flags(options: Options) -> list[str]:
    """The flags for all fields that differ from their defaults: `["--num-steps", "25", "--set", "sampler.rho=3"]`."""
    parts = []
    for name, field in type(options).model_fields.items():
        value, spelling, flag = getattr(options, name), spelling_of(field), name.replace("_", "-")
        if spelling.argument or value == field.get_default():
            continue
        if spelling.table:
            parts += [part for key, v in value.items() for part in ("--set", f"{spelling.table}.{key}={_toml(v)}")]
        elif isinstance(value, bool):
            parts.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            parts += [f"--{flag}", _text(value)]
    return parts


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _toml(value: Any) -> str:
    """A value as `--set` reads it; a word needs no quotes."""
    if isinstance(value, str | Path):
        bare = re.fullmatch(r"[A-Za-z][\w-]*", str(value)) and value not in ("true", "false", "inf", "nan")
        return str(value) if bare else json.dumps(str(value))
    return json.dumps(value)
