"""MACs against resolution, as a picture (matplotlib, the extra `plot`)."""

from __future__ import annotations

from pathlib import Path

from mpdit_core.errors import UserError
from mpdit_core.model.compute import Convention, count
from mpdit_core.profiling.targets import Target, at_resolution
from mpdit_core.runtime.files import writing

RESOLUTIONS = [256, 512, 768, 1024, 1280, 1536, 1792, 2048]
FORMATS = (".png", ".svg", ".pdf")
LEVELS = {1: "dense", 2: "two-level", 3: "three-level"}
COLOURS = ["#1b4f8a", "#c8501e", "#2f7d4f", "#7a3b8f", "#8a6d1b", "#2a8c8c", "#a03060", "#555555"]


def check(path: Path) -> None:
    """Raises `UserError`, before any work: the file's ending is unknown, or matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"the figure {path}", code="invalid-value", expected="a file ending in " + ", ".join(FORMATS))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            "a figure needs matplotlib", code="missing-package", remedy="pip install 'mpdit[plot]'"
        ) from None


def draw(targets: list[Target], path: Path, *, convention: Convention) -> None:
    """One line per model, over the resolutions that its patches divide."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    lines = [(legend(target), _points(target, convention)) for target in targets]
    for (name, points), colour in zip(lines, COLOURS * (len(lines) // len(COLOURS) + 1), strict=False):
        axes.plot([p[0] for p in points], [p[1] for p in points], "o-", markersize=3.5, color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(RESOLUTIONS, [str(r) for r in RESOLUTIONS], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("resolution (side in pixels)")
    axes.set_ylabel("giga-MACs of one forward pass")
    axes.set_title(f"Compute against resolution ({convention} convention)", loc="left", fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with writing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().removeprefix("."), dpi=160)


def legend(target: Target) -> str:
    """`three-level: v2-xl-512`; without a resolution, as the line runs over many."""
    levels = len(target.model.stages)
    return f"{LEVELS.get(levels, f'{levels}-level')}: {target.name.partition(' @')[0]}"


def _points(target: Target, convention: Convention) -> list[tuple[int, float]]:
    points = []
    for resolution in RESOLUTIONS:
        try:
            model = at_resolution(target.run, resolution).model
        except UserError:
            continue
        points.append((resolution, count(model, convention=convention).macs / 1e9))
    return points
