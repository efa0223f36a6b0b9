"""The curves of a report, and which values form a line. charts.py draws them.

To add a quantity that is logged at steps: a row in `CURVES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from markupsafe import Markup

from mpdit_core.evaluation import EvaluationRecord
from mpdit_core.run_report.bands import band_for
from mpdit_core.run_report.charts import Axis, Line, chart
from mpdit_core.run_report.published import by_adm_protocol, published_for
from mpdit_core.run_report.run import Run

# quantity in metrics.jsonl: title, whether its axis is logarithmic, whether it is noisy and needs a running mean
CURVES = {
    "loss":              ("loss", True, True),
    "grad_norm":         ("gradient norm", False, True),
    "learning_rate":     ("learning rate", False, False),
    "images_per_second": ("images per second", False, True),
    "mfu":               ("model-FLOP utilisation", False, True),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its caption."""

    title: str
    note: str
    svg: Markup


def figures(runs: Sequence[Run]) -> list[Figure]:
    """The charts of logged quantities and then of evaluations, for those that have at least two points."""
    steps = Axis.around([0, *(run.history.last["step"] for run in runs)])
    made = []
    for key, (title, log, noisy) in CURVES.items():
        lines = [line for run in runs for line in _lines_of_steps(run, key, noisy=noisy)]
        if lines:
            note = "thick: running mean" if noisy else ""
            if key == "loss" and (bands := _bands(runs)):
                lines, note = [*bands, *lines], f"{note}; grey: recorded runs"
            made.append(Figure(title=title, note=note, svg=chart(lines, steps=steps, log=log, label=title)))
    titles = {key: title for run in runs for record in run.records for key, title in record.labels.items()}
    measured: dict[str, list[Line]] = {}
    for run in runs:
        for key, line in _lines_of_evaluations(run):
            measured.setdefault(key, []).append(line)
    for key, lines in measured.items():
        notes = ["bars: 95 % bootstrap interval"] if any(line.intervals for line in lines) else []
        reach = steps
        if key == "fid" and (published := _published(runs)):
            lines, notes = [*published, *lines], [*notes, "grey: published"]
            reach = Axis.around([0, steps.high, *(step for line in published for step, _ in line.points)])
        if sum(len(line.points) for line in lines) > 1:
            title = titles.get(key, key.replace("_", " "))
            made.append(Figure(title=title, note="; ".join(notes), svg=chart(lines, steps=reach, label=title)))
    return made


def _lines_of_steps(run: Run, key: str, *, noisy: bool) -> Iterator[Line]:
    points = run.history.series[key].points if key in run.history.series else []
    if len(points) > 1:
        yield Line(name=run.name, run=run.number, points=points, look="faint" if noisy else "line")
        if noisy:
            means = running_mean([value for _, value in points])
            mean = [(step, value) for (step, _), value in zip(points, means, strict=True)]
            yield Line(name=f"{run.name}, mean", run=run.number, points=mean)


def _bands(runs: Sequence[Run]) -> list[Line]:
    """The losses of recorded runs, each in the middle of its window.

    Each band is drawn once, up to the last step of the longest run that it applies to.
    """
    lines = {}
    for run in sorted(runs, key=lambda run: run.history.last["step"]):
        band = band_for(run.config, run.latents)
        if band is None:
            continue
        middles = [(start + end) / 2 / run.config.train.batch_size for start, end in pairwise([0, *band.images_seen])]
        reached = [n for n, step in enumerate(middles) if step <= run.history.last["step"]]
        if len(reached) > 1:
            points = [(middles[n], band.loss[n]) for n in reached]
            intervals = {middles[n]: band.limits(n) for n in reached}
            name = f"{band.runs} recorded runs, {band.what}"
            lines[points[0]] = Line(name=name, run=run.number, points=points, look="band", intervals=intervals)
    return list(lines.values())


def _published(runs: Sequence[Run]) -> list[Line]:
    """The published FIDs, up to the first that the run has not reached, for runs with an FID that is comparable."""
    lines = []
    for run in runs:
        steps_per_epoch = run.latents.count / run.config.train.batch_size
        points = [(each.epochs * steps_per_epoch, each.value) for each in published_for(run.config, run.latents)]
        reached = sum(step <= run.history.last["step"] for step, _ in points)
        if points and any(by_adm_protocol(record) for record in run.records):
            lines.append(Line(name="published", run=run.number, points=points[: reached + 1], look="published"))
    return lines


def _lines_of_evaluations(run: Run) -> Iterator[tuple[str, Line]]:
    """(key of a metric, line of its values) for each protocol, and for values that are only in metrics.jsonl."""
    groups: dict[str, list[EvaluationRecord]] = {}
    for record in run.records:
        settings = record.sampling.values() if record.sampling else {}
        groups.setdefault(f"{record.count} {record.extractor.fingerprint} {settings}", []).append(record)
    for records in groups.values():
        for key in {key: None for record in records for key in record.labels}:
            values = {record.step: record.metrics.get(key) for record in records}
            bars = {record.step: record.metrics.get(f"{key}_interval") for record in records}
            line = Line(
                name=f"{run.name}, {protocol_of(records[0])}",
                run=run.number,
                points=[(step, value) for step, value in values.items() if isinstance(value, int | float)],
                look="dots",
                intervals={step: bar for step, bar in bars.items() if isinstance(bar, tuple)},
            )
            if line.points:
                yield key, line
    recorded = {(key, record.step) for record in run.records for key in record.labels}
    for name, series in run.history.series.items():
        key = name.removeprefix("eval/")
        points = [(step, value) for step, value in series.points if (key, step) not in recorded]
        if key != name and not key.endswith(("_std", "_bias")) and points:
            yield key, Line(name=f"{run.name}, in the run", run=run.number, points=points, look="dots")


def protocol_of(record: EvaluationRecord) -> str:
    """The protocol of an evaluation in a few words."""
    parts = [f"{record.count:,} images"]
    if record.sampling is not None:
        options = record.sampling.options
        parts += [f"{options.sampler} {options.num_steps} steps", f"guidance {options.guidance_scale:g}"]
    return ", ".join(parts)


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean over a window around each value, a thirtieth of all `values` wide and shorter at the ends."""
    half, sums = max(1, len(values) // 60), [0.0, *accumulate(values)]
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in windows]
