"""A figure of MACs against resolution (matplotlib, the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpdit_core.errors import UserError
from mpdit_core.model.compute import Convention, forward_macs
from mpdit_core.plots import INSTALL_MATPLOTLIB, has_matplotlib, plot
from mpdit_core.profiling.targets import Target, at_resolution
from mpdit_core.size import Size

RESOLUTIONS = range(256, 2048 + 1, 256)
FORMATS = (".png", ".svg", ".pdf")
STAGES = {1: "dense", 2: "two stages", 3: "three stages"}


def check(path: Path) -> None:
    """Raises `UserError` where the file's ending is unknown, or matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"the file of the figure is {path}", code="invalid-value", expected=f"an ending of {', '.join(FORMATS)}"
        )
    if not has_matplotlib():
        raise UserError("the figure needs matplotlib", code="missing-package", remedy=INSTALL_MATPLOTLIB)


def draw(targets: Sequence[Target], path: Path, *, convention: Convention) -> None:
    """Draws one line per model, over the resolutions that its patches divide."""
    with plot(path, x="resolution (side in pixels)", y="giga-MACs of one forward pass") as axes:
        for target in targets:
            points = _points(target, convention)
            axes.plot(list(points), list(points.values()), "o-", markersize=3.5, label=legend(target))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(RESOLUTIONS, [str(resolution) for resolution in RESOLUTIONS], fontsize=8)
        axes.minorticks_off()
        axes.set_title(f"Compute against resolution ({convention} convention)", loc="left", fontsize=10)


def legend(target: Target) -> str:
    """`three stages: v2-xl-512`, without a resolution, because the line covers many."""
    stages = len(target.model.stages)
    return f"{STAGES.get(stages, f'{stages} stages')}: {target.name.partition(' @')[0]}"


def _points(target: Target, convention: Convention) -> dict[int, float]:
    """Giga-MACs at each resolution that the model can have."""
    points = {}
    for resolution in RESOLUTIONS:
        try:
            model = at_resolution(target.run, Size.square(resolution)).model
        except UserError:
            continue
        points[resolution] = forward_macs(model, convention=convention) / 1e9
    return points
