"""`mpdit train --sweep KEY=V1,V2,… --seeds N`: every combination of settings trained, with every seed, in one folder.

    runs/sweep-1/sweep.json                             the options
    runs/sweep-1/train.learning_rate=1e-4-seed0/        a run like any other
    runs/sweep-1/table.json, distance.png               the results

A sweep has no state besides its runs. If it is started again, it skips finished runs and resumes the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from urllib.parse import quote

from mpdit_core import __version__
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.pictures import can_plot
from mpdit_core.reporting import Note, Progress, Reporter, Saved, Warning, silent, without_repeats
from mpdit_core.runtime import files
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.settings import merge, validate
from mpdit_core.sweeps import read_sweeps, with_value, with_values
from mpdit_core.training.job import train
from mpdit_core.training.options import TrainOptions
from mpdit_core.training.setup import Plan, prepare
from mpdit_core.training.sweep import results
from mpdit_core.training.sweep.results import TrainSweepResult

FORMAT = 1
"""Version of sweep.json; any other is refused."""

ABOUT, TABLE, PLOT = "sweep.json", "table.json", "distance.png"
KEPT = {"preset", "config", "settings", "steps", "latents", "init_from", "sweep", "seeds"}
"""Options that sweep.json holds: what is trained, not where."""

SEED = "train.seed"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a sweep."""

    options: TrainOptions  # that train it
    plan: Plan
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
    about = files.read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(
            f"{folder / ABOUT} is not of format {FORMAT}",
            code="unknown-format",
            expected=f"the format that mpdit {__version__} writes",
            remedy="use the version that wrote it, or start another sweep",
        )
    saved = validate(TrainOptions, about.get("options"), origin=str(folder / ABOUT))
    given = {name: getattr(options, name) for name in options.model_fields_set}
    given["settings"] = merge(saved.settings, options.settings)
    return saved.model_copy(update=given)


def _members(options: TrainOptions, folder: Path, *, world_size: int) -> list[Member]:
    """All runs, ordered by combination, then by seed. Raises `UserError` as `prepare`."""
    axes = read_sweeps(options.sweep)
    if any(axis.key == SEED for axis in axes):
        raise UserError(
            f"sweep {SEED}", code="swept-twice", expected="other keys", remedy="give --seeds N to train with N seeds"
        )
    alone = options.model_copy(update={"run": None, "sweep": (), "seeds": 1, "dry_run": False})
    grid = [dict(zip((axis.key for axis in axes), texts, strict=True)) for texts in product(*(a.texts for a in axes))]
    cells = [with_values(alone, values) for values in grid]
    first = prepare(cells[0], report=silent, world_size=world_size).config.train.seed
    members = []
    for values, cell in zip(grid, cells, strict=True):
        name = ",".join(f"{key}={quote(text, safe=',[]=+.')}" for key, text in values.items())
        for seed in range(first, first + options.seeds):
            path = folder / (f"{name}-seed{seed}" if name else f"seed{seed}")
            of_run = with_value(cell, SEED, str(seed)).model_copy(update={"run": path})
            plan = prepare(of_run, report=silent, world_size=world_size)
            members.append(Member(options=of_run, plan=plan, values=values, command=cell.command_line()))
    return members


def _train_all(members: Sequence[Member], report: Reporter, *, folder: Path, world: World) -> None:
    """Trains the runs that have neither finished nor diverged."""
    for number, member in enumerate(members):
        report(Progress(task="sweep", done=number, total=len(members), unit="runs"))
        outcome = world.on_main(lambda plan=member.plan: results.outcome_of(plan))
        if outcome.finished or outcome.diverged:
            continue
        try:
            train(member.options, report=report)
        except Interrupted as stopped:
            raise Interrupted(stopped.signum, remedy=f"mpdit train --run {folder}") from None
        except UserError as error:
            if error.code != "diverged":
                raise
            report(Warning(code="diverged", text=f"{member.plan.run}: {error.what}"))
    report(Progress(task="sweep", done=len(members), total=len(members), unit="runs"))


def _result(folder: Path, members: Sequence[Member]) -> TrainSweepResult:
    cells = []
    for _, group in groupby(members, key=lambda member: member.values):
        first, *_ = runs = list(group)
        outcomes = [results.outcome_of(run.plan) for run in runs]
        flops = results.flops_per_step(first.plan) * first.plan.total_steps
        cells.append(results.cell_of(first.values, outcomes, flops=flops, command=first.command))
    return TrainSweepResult(
        path=folder,
        axes=tuple(members[0].values),
        cells=tuple(cells),
        distance=results.name_of_distance(cells),
        best=results.best_of(cells),
    )


def _write(result: TrainSweepResult, report: Reporter) -> TrainSweepResult:
    """Writes the table, and the plot if there are distances and matplotlib is installed; returns the result with it."""
    if result.distance and can_plot(report):
        result = result.model_copy(update={"plot": result.path / PLOT})
        results.draw(result, result.path / PLOT)
        report(Saved(what="plot", path=result.path / PLOT))
    files.write_json(result.path / TABLE, result.model_dump(mode="json", exclude={"path"}))
    report(Saved(what="table", path=result.path / TABLE))
    return result
