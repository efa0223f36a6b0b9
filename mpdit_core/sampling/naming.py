"""The folder that samples are written to where none is given: `samples/<model>-<n>`."""

from __future__ import annotations

import re
from pathlib import Path

from mpdit_core.models.model_folder import ModelFolder

SAMPLES = Path("samples")


def model_name(where: str, folder: ModelFolder) -> str:
    """A short name for file names: `digits-1` for a run, `digits-1-step-0000400` for one of its checkpoints."""
    if where.startswith("hf:"):
        return where.removeprefix("hf:").partition("@")[0].rpartition("/")[2]
    if folder.run is not None:
        run = folder.run.resolve().name
        return run if Path(where).resolve() == folder.run.resolve() else f"{run}-{folder.path.name}"
    return folder.path.resolve().name


def newest_folder(name: str, *, after: int = 0) -> Path:
    """The folder `samples/<name>-<n>` with the largest n, which is 0 where there is none; `after=1`: the next one."""
    pattern = re.compile(rf"{re.escape(name)}-(\d+)")
    number = max((int(m[1]) for path in SAMPLES.glob("*") if (m := pattern.fullmatch(path.name))), default=0)
    return SAMPLES / f"{name}-{number + after}"
