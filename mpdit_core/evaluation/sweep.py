"""`eval-fid --sweep KEY=V1,V2,…`: an evaluation per combination of options, with a table and a plot of the distance."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from mpdit_core.errors import UserError
from mpdit_core.evaluation.job import evaluate
from mpdit_core.evaluation.options import EvaluateOptions
from mpdit_core.evaluation.record import EvaluationRecord, Value
from mpdit_core.evaluation.subject import open_model_or_samples, require_what
from mpdit_core.models.model_folder import find_checkpoints
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.plots import can_plot, plot
from mpdit_core.reporting import Event, Note, Progress, Reporter, Saved, Warning, silent, without_repeats
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import process_group
from mpdit_core.runtime.files import write_json
from mpdit_core.settings import Result, Settings, setting
from mpdit_core.sweeps import Axes, combinations, read_sweeps, with_values

FORMAT = 2
"""Version of the table's file."""

CHECKPOINT = "checkpoint"


class SweepRow(Settings):
    """One combination."""

    values: dict[str, str] = setting(..., "key → its value, as text")
    nfe: float | None = setting(None, "network evaluations per image")
    passes: float | None = setting(None, "passes of an image through a network")
    metrics: dict[str, Value] = setting(..., "its metrics")
    record: Path = setting(..., "its record")


class SweepResult(Result):
    """Every combination of the values of a sweep."""

    format: int = setting(FORMAT, "format version of the table")
    what: str = setting(..., "the model that was evaluated")
    axes: tuple[str, ...] = setting(..., "the keys, in order")
    labels: dict[str, str] = setting(..., "keys of metrics → names to show")
    plotted: str = setting(..., "key of the metric in the plot")
    rows: tuple[SweepRow, ...] = setting(..., "one per combination")
    lowest: SweepRow = setting(..., "the row with the lowest value of `plotted`")
    at_an_end: bool = setting(..., "whether the lowest is at an end of the first axis: beyond it a value may be lower")
    note: str = setting(..., "number of samples and reference")
    path: Path = setting(..., "file of the table")
    plot: Path | None = setting(None, "the plot; None: matplotlib is not installed")


def evaluate_sweep(options: EvaluateOptions, *, report: Reporter = silent) -> SweepResult:
    """Evaluates every combination of `options.sweep`. Each has a record, which is read if it exists already.

    A sweep is `KEY=V1,V2` with an option of sampling, or `checkpoint=step-0001000,…` of the run `options.what`.

    Raises:
        UserError: as `evaluate` for any combination, before the first is sampled.
    """
    what, axes, device = require_what(options), read_sweeps(options.sweep), select_device(options.device)
    if open_model_or_samples(options.model_copy(update={"num_samples": None}), device).model is None:
        raise UserError(
            f"{what} holds finished samples, but a sweep samples with each combination of options",
            code="not-a-model",
            expected="a model to sample",
        )
    cells = combinations(axes)
    planned = [_options_of(options, cell) for cell in cells]
    for chosen in planned:
        open_model_or_samples(chosen, device)
    with_plot = can_plot(report)
    records, once = [], without_repeats(report, _repeat_key)
    with process_group(device) as world:
        for number, chosen in enumerate(planned):
            report(Progress(task="sweep", done=number, total=len(cells), unit="evaluations"))
            records.append(evaluate(chosen, report=once))
        report(Progress(task="sweep", done=len(cells), total=len(cells), unit="evaluations"))
        result = _result(what, axes, cells, records, with_plot=with_plot)
        if world.is_main:
            if result.plot:
                draw(axes, result, result.plot)
            write_json(result.path, result.model_dump(mode="json", exclude={"path"}))
    report(Saved(what="table", path=result.path))
    if result.plot:
        report(Saved(what="plot", path=result.plot))
    return result


def _repeat_key(event: Event) -> str | None:
    """The key that a repeated note or warning has: its text, or its code if the numbers in its text may differ."""
    if isinstance(event, Warning) and event.code == "few-samples":
        return event.code
    return event.text if isinstance(event, Note | Warning) else None


def _options_of(options: EvaluateOptions, cell: dict[str, str]) -> EvaluateOptions:
    """The options of one combination."""
    if CHECKPOINT in cell:
        checkpoint = _checkpoint(Path(require_what(options)), cell[CHECKPOINT])
        options = options.model_copy(update={"what": str(checkpoint)})
    return with_values(options, {key: text for key, text in cell.items() if key != CHECKPOINT})


def _checkpoint(run: Path, text: str) -> Path:
    """The checkpoint of a run that `text` means: `step-0000800`, or its step as a number."""
    name = RunFolder(run).checkpoint(int(text)).name if text.isdecimal() and len(text) < 20 else text
    there = {folder.name: folder for folder in find_checkpoints(run)[0]}
    if name not in there:
        raise UserError(
            f"sweep {CHECKPOINT}={text}: {run} has no such checkpoint",
            code="no-such-checkpoint",
            expected=", ".join(there) or "a run with checkpoints",
        )
    return there[name]


def _result(
    what: str, axes: Axes, cells: list[dict[str, str]], records: list[EvaluationRecord], *, with_plot: bool
) -> SweepResult:
    first = records[0]
    measured = (key for key in first.labels if first.metrics[key] is not None)
    plotted = first.distance or next(measured, next(iter(first.labels)))
    rows = [
        SweepRow(
            values=cell,
            nfe=record.sampling.nfe if record.sampling else None,
            passes=record.sampling.passes if record.sampling else None,
            metrics=record.metrics,
            record=record.path,
        )
        for cell, record in zip(cells, records, strict=True)
    ]
    lowest = min(rows, key=lambda row: (math.isnan(_figure(row, plotted)), _figure(row, plotted)))
    first_key, texts = next(iter(axes.items()))
    identity = hashlib.sha256(json.dumps([str(row.record) for row in rows]).encode()).hexdigest()[:10]
    path = first.path.parent / f"sweep-{identity}.json"
    return SweepResult(
        what=what,
        axes=tuple(axes),
        labels=first.labels,
        plotted=plotted,
        rows=tuple(rows),
        lowest=lowest,
        at_an_end=len(texts) > 1 and lowest.values[first_key] in (texts[0], texts[-1]),
        note=f"{first.count} samples each against {first.reference.path}",
        path=path,
        plot=path.with_suffix(".png") if with_plot else None,
    )


def _figure(row: SweepRow, key: str) -> float:
    """The value under `key`; NaN where this row has none."""
    value = row.metrics.get(key)
    return value if isinstance(value, float) else math.nan


def draw(axes: Axes, result: SweepResult, path: Path) -> None:
    """Plots the metric against the guidance scale, or the first key; one line per combination of the other keys."""
    along = "guidance_scale" if "guidance_scale" in axes else result.axes[0]
    try:
        place, is_number = {text: float(text) for text in axes[along]}, True
    except ValueError:
        place, is_number = {text: float(n) for n, text in enumerate(axes[along])}, False
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in result.rows:
        name = ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in row.values.items() if key != along)
        lines.setdefault(name, []).append((place[row.values[along]], _figure(row, result.plotted)))
    with plot(path, x=along.replace("_", " "), y=result.labels.get(result.plotted, result.plotted)) as panel:
        for name, points in lines.items():
            panel.plot(*zip(*sorted(points), strict=True), "o-", markersize=4, label=name)
        if not is_number:
            panel.set_xticks(list(place.values()), list(place))
        panel.set_title(result.note, loc="left", fontsize=9, color="#444444")
