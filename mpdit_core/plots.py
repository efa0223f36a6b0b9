"""Plots of lines against two axes, by matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpdit_core.reporting import Reporter, Warning
from mpdit_core.runtime.files import writing

INSTALL_MATPLOTLIB = "pip install 'mpdit[plot]'"


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def can_plot(report: Reporter) -> bool:
    """Whether matplotlib is installed; where it is not, a warning says how to install it."""
    if not has_matplotlib():
        report(Warning(code="no-matplotlib", text=f"the plot needs matplotlib: {INSTALL_MATPLOTLIB}"))
    return has_matplotlib()


@contextmanager
def plot(path: Path, *, x: str, y: str) -> Iterator[Any]:
    """Yields matplotlib's axes with these labels. `path` is written after the body has drawn on them.

    The file extension sets the format. The legend lists the lines that have a label.
    """
    from matplotlib.figure import Figure  # not pyplot, which would choose a window system

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)
    with writing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().removeprefix("."), dpi=160)
