"""The plot of a sweep of trainings: distance against compute."""

from __future__ import annotations

from pathlib import Path

from mpdit_core.pictures import plot
from mpdit_core.training.sweep.results import Cell, TrainSweepResult, statistics


def draw(result: TrainSweepResult, path: Path) -> None:
    """Draws the distance at each evaluation against the operations until then, one line per combination.

    Points are means over seeds, error bars one standard deviation.
    """
    with plot(path, x="floating-point operations of training", y=result.distance or "") as axes:
        for cell in result.cells:
            points = points_of(cell)
            name = ", ".join(f"{key.rpartition('.')[2].replace('_', ' ')} {text}" for key, text in cell.values.items())
            flops, means, deviations = ([point[i] for point in points] for i in range(3))
            axes.errorbar(flops, means, yerr=deviations, fmt="o-", markersize=4, capsize=3, label=name)


def points_of(cell: Cell) -> list[tuple[float, float, float]]:
    """(operations, mean distance, standard deviation) of each step at which a run was evaluated."""
    points = []
    for flops in sorted({each.flops for run in cell.runs for each in run.evaluations}):
        found = statistics([each.distance for run in cell.runs for each in run.evaluations if each.flops == flops])
        assert found is not None
        points.append((flops, found.mean, found.std or 0.0))
    return points
