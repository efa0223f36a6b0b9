"""Views: what `mpdit sample` makes in place of a set of samples, each a folder with an image and a JSON file.

To add one: a function `(options, *, report) -> ViewResult` in a module beside this one, which begins with a `View`
and ends with `View.finish`; a line in `VIEWS`; its option in `SampleOptions` and `VIEW_OPTIONS` (sampling/options.py).
"""

from __future__ import annotations

from collections.abc import Callable

from mpdit_core.sampling.options import ViewResult
from mpdit_core.sampling.views import interpolation, nearest, sweep, trajectory

VIEWS: dict[str, Callable[..., ViewResult]] = {
    "sweep": sweep.sweep,
    "trajectory": trajectory.trajectory,
    "interpolate": interpolation.interpolation,
    "nearest": nearest.nearest,
}
"""The option that asks for a view → the function that makes it."""
