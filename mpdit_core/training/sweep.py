"""`mpdit train --sweep KEY=V1,V2,… --seeds N`: every combination of settings trained, with every seed, in one folder.

    runs/sweep-1/sweep.json                             the options
    runs/sweep-1/train.learning_rate=1e-4-seed0/        a run like any other
    runs/sweep-1/table.json, distance.png               the results

A sweep has no state besides its runs. If it is started again, it skips finished runs and resumes the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from urllib.parse import quote

from mpdit_core.config import RunConfig
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.evaluation.options import METRICS
from mpdit_core.model.compute import training_macs
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.plots import can_plot, plot
from mpdit_core.reporting import Note, Progress, Reporter, Saved, Warning, silent, without_repeats
from mpdit_core.runtime import files
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.settings import Result, Settings, merge, setting, validate
from mpdit_core.sweeps import combinations, read_sweeps, with_value, with_values
from mpdit_core.training.job import train
from mpdit_core.training.options import TrainOptions
from mpdit_core.training.setup import plan_run
from mpdit_core.version import __version__

FORMAT = 1
"""Version of sweep.json; any other is refused."""

ABOUT, TABLE, PLOT = "sweep.json", "table.json", "distance.png"
KEPT = {"preset", "config", "settings", "steps", "latents", "init_from", "sweep", "seeds"}
"""Options that sweep.json holds: what is trained, not where."""

SEED = "train.seed"

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


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a sweep."""

    options: TrainOptions  # that train it
    run: RunFolder
    config: RunConfig
    total_steps: int
    values: dict[str, str]  # of its combination
    command: str  # that trains its combination in a separate run


def is_sweep_folder(path: Path | None) -> bool:
    """Whether a sweep was begun in the folder."""
    return path is not None and (path / ABOUT).is_file()


def train_sweep(options: TrainOptions, *, report: Reporter = silent) -> TrainSweepResult:
    """Trains every combination of `options.sweep` with `options.seeds` seeds, one run after the other.

    Without a sweep there is one combination. A run that diverges is a warning, and its combination cannot be the best.
    With `dry_run` everything is checked and nothing trained; the result holds the runs so far.

    Raises:
        UserError: as `read_sweeps`, and as `train` for any combination, before the first is trained; the seed as a key
            (`swept-twice`); a folder that holds something else (`not-a-sweep-folder`).
        Interrupted: after a signal, with a checkpoint written.
    """
    device = select_device(options.device)
    with process_group(device) as world:
        folder = world.on_main(lambda: _folder(options))
        options = _with_saved(folder, options)
        members = _members(options, folder, world_size=world.size)
        if not options.dry_run:
            kept = options.model_dump(mode="json", include=KEPT)
            about = {"format": FORMAT, "mpdit": __version__, "options": kept}
            world.on_main(lambda: files.write_json(folder / ABOUT, about))
            once = without_repeats(report, lambda event: event.text if isinstance(event, Note) else None)
            _train_all(members, once, folder=folder, world=world)
        result = _result(folder, members)
        if world.is_main and not options.dry_run:
            result = _write(result, report)
        return result


def _folder(options: TrainOptions) -> Path:
    """The sweep's folder, which may not exist."""
    path = options.run or RunFolder.next(options.runs_root, "sweep").path
    if is_sweep_folder(path) and not options.resume:
        raise UserError(f"{path} holds a sweep already", code="run-exists", remedy="choose another --run")
    if path.exists() and not is_sweep_folder(path) and any(path.iterdir()):
        raise UserError(
            f"{path} is not empty and not a sweep",
            code="not-a-sweep-folder",
            expected="the folder of a sweep, or a new one",
            remedy="choose another --run",
        )
    return path


def _with_saved(folder: Path, options: TrainOptions) -> TrainOptions:
    """The options that the sweep was begun with; those that are given now replace them."""
    if not is_sweep_folder(folder):
        return options
    about = files.read_versioned(folder / ABOUT, "the record of a sweep", version=FORMAT, remedy="start another sweep")
    saved = validate(TrainOptions, about.get("options"), origin=str(folder / ABOUT))
    given = {name: getattr(options, name) for name in options.model_fields_set}
    given["settings"] = merge(saved.settings, options.settings)
    return saved.model_copy(update=given)


def _members(options: TrainOptions, folder: Path, *, world_size: int) -> list[Member]:
    """All runs, ordered by combination, then by seed. Raises `UserError` as `plan_run`."""
    axes = read_sweeps(options.sweep)
    if SEED in axes:
        raise UserError(
            f"sweep {SEED}", code="swept-twice", expected="other keys", remedy="give --seeds N to train with N seeds"
        )
    alone = options.model_copy(update={"run": None, "sweep": (), "seeds": 1, "dry_run": False})
    grid = combinations(axes)
    cells = [with_values(alone, values) for values in grid]
    first = plan_run(cells[0], report=silent, world_size=world_size).config.train.seed
    members = []
    for values, cell in zip(grid, cells, strict=True):
        name = ",".join(f"{key}={quote(text, safe=',[]=+.')}" for key, text in values.items())
        for seed in range(first, first + options.seeds):
            path = folder / (f"{name}-seed{seed}" if name else f"seed{seed}")
            of_run = with_value(cell, SEED, str(seed)).model_copy(update={"run": path})
            plan = plan_run(of_run, report=silent, world_size=world_size)
            member = Member(
                options=of_run,
                run=plan.run,
                config=plan.config,
                total_steps=plan.total_steps,
                values=values,
                command=cell.command_line(),
            )
            members.append(member)
    return members


def _train_all(members: Sequence[Member], report: Reporter, *, folder: Path, world: World) -> None:
    """Trains the runs that have neither finished nor diverged."""
    for number, member in enumerate(members):
        report(Progress(task="sweep", done=number, total=len(members), unit="runs"))
        outcome = world.on_main(lambda member=member: outcome_of(member))
        if outcome.finished or outcome.diverged:
            continue
        try:
            train(member.options, report=report)
        except Interrupted as stopped:
            raise Interrupted(stopped.signum, remedy=f"mpdit train --run {folder}") from None
        except UserError as error:
            if error.code != "diverged":
                raise
            report(Warning(code="diverged", text=f"{member.run}: {error.what}"))
    report(Progress(task="sweep", done=len(members), total=len(members), unit="runs"))


def _result(folder: Path, members: Sequence[Member]) -> TrainSweepResult:
    cells = []
    for _, group in groupby(members, key=lambda member: member.values):
        first, *_ = runs = list(group)
        outcomes = [outcome_of(run) for run in runs]
        flops = flops_per_step(first.config) * first.total_steps
        cells.append(cell_of(first.values, outcomes, flops=flops, command=first.command))
    measured = {each.name for cell in cells for run in cell.runs for each in run.evaluations}
    return TrainSweepResult(
        path=folder,
        axes=tuple(members[0].values),
        cells=tuple(cells),
        distance=next((name for name in DISTANCES.values() if name in measured), None),
        best=best_of(cells),
    )


def _write(result: TrainSweepResult, report: Reporter) -> TrainSweepResult:
    """Writes the table, and the plot if there are distances and matplotlib is installed; returns the result with it."""
    if result.distance and can_plot(report):
        result = result.model_copy(update={"plot": result.path / PLOT})
        draw(result, result.path / PLOT)
        report(Saved(what="plot", path=result.path / PLOT))
    files.write_json(result.path / TABLE, result.model_dump(mode="json", exclude={"path"}))
    report(Saved(what="table", path=result.path / TABLE))
    return result


def flops_per_step(config: RunConfig) -> int:
    """Floating-point operations of one optimizer step."""
    return 2 * training_macs(config.model) * config.train.batch_size


def outcome_of(member: Member) -> RunOutcome:
    """How far a run is, as its folder tells."""
    run, config, total_steps = member.run, member.config, member.total_steps
    lines = list(run.metrics())
    logged = [line for line in lines if "loss" in line]
    losses, step = [line["loss"] for line in logged], max((line["step"] for line in logged), default=0)
    flops = flops_per_step(config)
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
