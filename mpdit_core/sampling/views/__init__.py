"""Pictures of `mpdit sample` that are not plain sets of samples: each a folder with a picture and a JSON file.

To add one: a function `(options, *, report) -> ViewResult` in a module beside this one, which begins with `open_view`
and ends with `finish`; a line in `VIEWS`; its option in `SampleOptions` and in `PICTURES` (sampling/options.py).
"""

from __future__ import annotations

from typing import Protocol

from mpdit_core.reporting import Reporter
from mpdit_core.sampling.options import SampleOptions, ViewResult
from mpdit_core.sampling.views import interpolation, nearest, sweep, trajectory


class View(Protocol):
    def __call__(self, options: SampleOptions, *, report: Reporter) -> ViewResult: ...


VIEWS: dict[str, View] = {
    "sweep": sweep.sweep,
    "trajectory": trajectory.trajectory,
    "interpolate": interpolation.interpolation,
    "nearest": nearest.nearest,
}
"""The option that asks for a picture → what makes it."""
