"""The results of a sweep: read from the folders of its runs, averaged over seeds, and plotted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from mpdit_core.evaluation.options import METRICS
from mpdit_core.model.compute import training_macs
from mpdit_core.pictures import plot
from mpdit_core.settings import Result, Settings, setting
from mpdit_core.training.setup import Plan

DISTANCES = {"eval/fid": METRICS["fid"].label, f"eval/{METRICS['fid'].other_key}": METRICS["fid"].other_label}
"""Keys of metrics.jsonl that hold the distance of an evaluation → names to show."""


class RunEvaluation(Settings):
    """One evaluation of a run."""

    step: int = setting(..., "optimizer steps done")
    flops: float = setting(..., "floating-point operations of the training up to that step")
    distance: float = setting(..., "Fréchet distance of its samples")
    name: str = setting(..., "name of that distance")


class RunOutcome(Settings):
    """One run of a sweep, finished or not."""

    run: Path = setting(..., "its folder")
    seed: int = setting(..., "its seed")
    step: int = setting(..., "optimizer steps logged")
    finished: bool = setting(..., "whether it did all its steps and the evaluation after the last")
    diverged: bool = setting(..., "whether it stopped because it diverged")
    loss: float | None = setting(..., "mean of the last tenth of its logged losses")
    evaluations: tuple[RunEvaluation, ...] = setting(..., "its evaluations, in order of step")


class Statistics(Settings):
    """A figure over several seeds."""

    mean: float = setting(..., "mean over the runs")
    std: float | None = setting(..., "standard deviation over the runs (of a sample: n - 1); none: one run")
    count: int = setting(..., "number of runs")


class Cell(Settings):
    """One combination of the values of a sweep."""

    values: dict[str, str] = setting(..., "key → its value, as text")
    runs: tuple[RunOutcome, ...] = setting(..., "one per seed")
    loss: Statistics | None = setting(..., "loss of the finished runs")
    distance: Statistics | None = setting(..., "Fréchet distance in their last evaluation")
    flops: float = setting(..., "floating-point operations of one whole run")
    command: str = setting(..., "command line that trains this combination in a separate run")


class TrainSweepResult(Result):
    """The runs of a sweep, finished or not."""

    path: Path = setting(..., "folder of the sweep")
    axes: tuple[str, ...] = setting(..., "the keys that were varied, in order")
    cells: tuple[Cell, ...] = setting(..., "one per combination")
    distance: str | None = setting(..., "name of the distance; none: no run was evaluated")
    best: Cell | None = setting(
        ..., "the combination with the lowest distance (or loss) among those whose runs all finished"
    )
    plot: Path | None = setting(None, "plot of distance against compute; none: no evaluations, or no matplotlib")


def flops_per_step(plan: Plan) -> int:
    """Floating-point operations of one optimizer step."""
    return 2 * training_macs(plan.config.model) * plan.config.train.batch_size


def outcome_of(plan: Plan) -> RunOutcome:
    """How far a run is, as its folder tells."""
    run, config, total_steps = plan.run, plan.config, plan.total_steps
    lines = list(run.metrics())
    logged = [line for line in lines if "loss" in line]
    losses, step = [line["loss"] for line in logged], max((line["step"] for line in logged), default=0)
    flops = flops_per_step(plan)
    evaluations = tuple(
        RunEvaluation(step=line["step"], flops=float(flops * line["step"]), distance=float(line[key]), name=name)
        for line in lines
        for key, name in DISTANCES.items()
        if key in line
    )
    every = config.preview.evaluate_every
    due = {total_steps - total_steps % every} - {0} if every else set()
    measured = {each.step for each in evaluations}
    finished = step == total_steps and run.checkpoint(step).is_dir() and due <= measured
    stops = config.train.on_nonfinite == "stop"
    return RunOutcome(
        run=run.path,
        seed=config.train.seed,
        step=step,
        finished=finished,
        diverged=stops and not finished and any(run.path.glob("bad-step-*.json")),
        loss=fmean(losses[-max(1, len(losses) // 10) :]) if losses else None,
        evaluations=evaluations,
    )


def statistics(values: Sequence[float]) -> Statistics | None:
    """Mean and standard deviation of the values; None where there are none."""
    if not values:
        return None
    return Statistics(mean=fmean(values), std=stdev(values) if len(values) > 1 else None, count=len(values))


def cell_of(values: dict[str, str], runs: Sequence[RunOutcome], *, flops: float, command: str) -> Cell:
    """The results of one combination, from its runs."""
    finished = [run for run in runs if run.finished]
    return Cell(
        values=values,
        runs=tuple(runs),
        loss=statistics([run.loss for run in finished if run.loss is not None]),
        distance=statistics([run.evaluations[-1].distance for run in finished if run.evaluations]),
        flops=flops,
        command=command,
    )


def best_of(cells: Sequence[Cell]) -> Cell | None:
    """The combination with the lowest distance, or with the lowest loss where none was evaluated.

    Combinations with an unfinished run are left out; None where no other is left.
    """
    whole = [cell for cell in cells if all(run.finished for run in cell.runs)]
    by_distance = [(cell.distance.mean, cell) for cell in whole if cell.distance]
    by_loss = [(cell.loss.mean, cell) for cell in whole if cell.loss]
    return min(by_distance or by_loss, key=lambda pair: pair[0], default=(None, None))[1]


def name_of_distance(cells: Sequence[Cell]) -> str | None:
    """The name of the distance that was measured; None where no run was evaluated."""
    names = {each.name for cell in cells for run in cell.runs for each in run.evaluations}
    return next((name for name in DISTANCES.values() if name in names), None)


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
