"""`mpdit train`: train a model on encoded latents, or resume a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_cli import console
from mpdit_cli.fields import Nproc, options_command
from mpdit_core.runtime.files import size_text
from mpdit_core.settings import to_toml
from mpdit_core.table import Table
from mpdit_core.training.options import DryRunResult, TrainOptions

if TYPE_CHECKING:
    from mpdit_core.training import Cell, Statistics, TrainSweepResult


@options_command(TrainOptions)
def command(options: TrainOptions, nproc: Nproc = "auto") -> None:
    """Train a model on encoded latents, or resume a run.

    Example: mpdit train --preset xl-256

    Without a preset, one that fits the latents is chosen. With --sweep,
    every combination of values is trained.
    """
    from mpdit_core.training import is_sweep_folder, train, train_sweep

    nproc = "1" if options.dry_run else nproc
    if options.sweep or options.seeds > 1 or is_sweep_folder(options.run):
        sweep = console.run(train_sweep, options, nproc=nproc, device=options.device)
        console.show(sweep, *sweep_parts(sweep))
        return
    result = console.run(train, options, nproc=nproc, device=options.device)
    if isinstance(result, DryRunResult):
        console.say(to_toml(result.config, origins=result.origins))
        console.show(result, _dry_run(result))
    else:
        rows = {"steps": f"{result.step:,}", "images seen": f"{result.images_seen:,}"}
        if result.loss is not None:
            rows["loss"] = f"{result.loss:.4f}"
        next_command = f"mpdit sample {result.run}"
        console.show(result, console.Summary(title=f"trained {result.run}", rows=rows, next_command=next_command))


def _dry_run(result: DryRunResult) -> console.Summary:
    checkpointing = result.config.train.activation_checkpointing
    other = "off" if checkpointing else "on"
    cost = "saves the second forward pass" if checkpointing else "adds a third to the compute"
    rows = {
        "latents": f"{result.latents}, {result.images:,} images",
        "steps": f"{result.total_steps:,}",
        "device memory": f"{size_text(result.memory_bytes)}, {size_text(result.activation_bytes)} of it activations",
        f"with activation checkpointing {other}": f"{size_text(result.switched_memory_bytes)}; {cost}",
        "disk": f"{size_text(result.disk_bytes)}, {size_text(result.checkpoint_bytes)} per checkpoint",
        "disk free": size_text(result.free_bytes),
    }
    title = f"{result.run} (nothing was written)"
    return console.Summary(title=title, rows=rows, next_command="the same without --dry-run")


def sweep_parts(sweep: TrainSweepResult) -> list[Table | console.Summary]:
    """One line per combination, and the best with its command line."""
    measured = [sweep.distance] if sweep.distance else []
    rows = [
        [*cell.values.values(), _finished(cell), f"{cell.flops:.3g}", _figure(cell.loss)]
        + [_figure(cell.distance) for _ in measured]
        for cell in sweep.cells
    ]
    table = Table(
        title=f"Sweep {sweep.path}",
        columns=[*sweep.axes, "finished", "FLOPs", "loss", *measured],
        rows=rows,
        note="mean ± standard deviation over the seeds that finished; loss: mean of the last tenth of each run",
    )
    best = sweep.best
    if best is None:
        return [table, console.Summary(title="no combination has finished", rows={})]
    label, figure = (sweep.distance, best.distance) if sweep.distance and best.distance else ("loss", best.loss)
    title = f"lowest {label}: {_figure(figure)}"
    return [table, console.Summary(title=title, rows=dict(best.values), next_command=best.command)]


def _finished(cell: Cell) -> str:
    """The number of runs that finished, of how many, and the number that diverged."""
    finished, diverged = sum(run.finished for run in cell.runs), sum(run.diverged for run in cell.runs)
    return f"{finished} of {len(cell.runs)}" + (f", {diverged} diverged" if diverged else "")


def _figure(figure: Statistics | None) -> str:
    if figure is None:
        return "–"
    return f"{figure.mean:.4f}" + (f" ± {figure.std:.4f}" if figure.std is not None else "")
