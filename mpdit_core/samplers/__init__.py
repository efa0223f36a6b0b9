"""Samplers: how x gets from t = 1 (noise) to t = 0 (data).

To add one: a file here with a `OneStepSampler` (euler.py is the shortest) or another dataclass that keeps the contract
`mpdit_core.api.Sampler`, and a line under `[project.entry-points."mpdit.samplers"]` in pyproject.toml, which
`make setup` installs. The shared test in tests/unit/samplers then measures its order; its row in docs/sampling.md is
written by hand. A sampler may also be in another package: see docs/plugins.md.
"""

from __future__ import annotations

from typing import Any

from mpdit_core import plugins
from mpdit_core.protocols import Sampler


def load_sampler(name: str, *, num_steps: int | None = None, **options: Any) -> Sampler:
    """The sampler called `name`, e.g. `load_sampler("euler", num_steps=50, grid="shifted")`.

    Args:
        name: of an entry point (`mpdit plugins` lists them), or `module:attribute`.
        num_steps: intervals; the sampler's own default if not given.
        options: its other fields, by name.

    Raises:
        UserError: there is no such sampler, an option does not exist, or its value is invalid.
    """
    if num_steps is not None:
        options["num_steps"] = num_steps
    return plugins.build("samplers", name, options)
