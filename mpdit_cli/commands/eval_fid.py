"""`mpdit eval-fid WHAT`: FID, sFID, Inception Score, precision and recall, with the protocol that gave them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpdit_cli import console
from mpdit_cli.commands.sample import guidance
from mpdit_cli.fields import Nproc, options_command
from mpdit_core.evaluation.options import EvaluateOptions
from mpdit_core.table import Table

if TYPE_CHECKING:
    from mpdit_core.evaluation import Comparison, EvaluationRecord, SweepResult


@options_command(EvaluateOptions)
def command(
    options: EvaluateOptions,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="A.json B.json",
            help="Show two records side by side, and whether their metrics may be compared.",
            rich_help_panel="Other work",
        ),
    ] = None,
    nproc: Nproc = "auto",
) -> None:
    """Measure a model or finished samples against real images, by the protocol of published numbers.

    Example: mpdit eval-fid runs/xl-256-1 -n 10000 --guidance-scale 1.5
    """
    from mpdit_core import evaluation

    running = {"nproc": nproc, "device": options.device}
    if compare is not None:
        comparison = console.run(evaluation.compare_records, *compare)
        console.show(comparison, *comparison_parts(comparison))
    elif options.make_reference is not None:
        reference = console.run(evaluation.make_reference, options, **running)
        rows = {"where": str(reference.path), "images": str(reference.count), "features": reference.features}
        console.show(reference, console.Summary(title="reference", rows=rows))
    elif options.sweep:
        sweep = console.run(evaluation.evaluate_sweep, options, **running)
        console.show(sweep, *sweep_parts(sweep))
    else:
        record = console.run(evaluation.evaluate, options, **running)
        console.show(record, *record_parts(record))


def record_parts(record: EvaluationRecord) -> list[Table | console.Summary]:
    """The figures of one evaluation, and how its samples were made."""
    rows = [[label, _figure(record, key)] for key, label in record.labels.items()]
    note = f"{record.count} samples against {record.reference.path}"
    table = Table(title=f"Evaluation of {record.what}", columns=["metric", "value"], rows=rows, note=note)
    made = record.sampling
    if made is None or made.nfe is None or made.passes is None:
        return [table]
    cost = f"{made.nfe:.4g} evaluations (NFE), {made.passes:.4g} passes of each image through the network"
    return [table, console.Summary(title="sampling", rows={"guidance": guidance(made.options), "cost": cost})]


def sweep_parts(sweep: SweepResult) -> list[Table | console.Summary]:
    """One line per combination, and the one with the lowest distance."""
    names = [key for key in sweep.labels if sweep.rows[0].metrics[key] is not None]
    rows = [
        [*row.values.values(), _text(row.nfe), _text(row.passes), *(_text(row.metrics[name]) for name in names)]
        for row in sweep.rows
    ]
    columns = [*sweep.axes, "NFE", "passes", *(sweep.labels[name] for name in names)]
    label, at = sweep.labels[sweep.plotted], ", ".join(f"{key} {text}" for key, text in sweep.lowest.values.items())
    found = {f"lowest {label}": f"{_text(sweep.lowest.metrics[sweep.plotted])} at {at}"}
    if sweep.at_an_end:
        found["note"] = f"the lowest is at the end of {sweep.axes[0]}: a value outside may be lower"
    return [
        Table(title=f"Sweep of {sweep.what}", columns=columns, rows=rows, note=sweep.note),
        console.Summary(title=f"{len(sweep.rows)} evaluations", rows=found),
    ]


def comparison_parts(comparison: Comparison) -> list[Table | console.Summary]:
    """Both records side by side, and the verdict."""
    a, b = comparison.a, comparison.b
    keys = list(dict.fromkeys([*a.metrics, *b.metrics]))
    rows = [[_label(key, b.labels | a.labels), _text(a.metrics.get(key)), _text(b.metrics.get(key))] for key in keys]
    differences = [*comparison.reasons, *comparison.cautions, *comparison.changed, *comparison.others]
    rows += [[d.name, *map(_text, d.values)] for d in differences]
    verdict = "comparable: same features, reference, number of samples and rules"
    if not comparison.comparable:
        verdict = f"not comparable: {', '.join(d.name for d in comparison.reasons)}"
    found = {"figures": verdict}
    if comparison.changed:
        found["sampling"] = f"generated with different settings: {', '.join(d.name for d in comparison.changed)}"
    return [
        Table(title="Two evaluations", columns=["", str(a.path), str(b.path)], rows=rows),
        console.Summary(title="compared", rows=found),
    ]


def _figure(record: EvaluationRecord, key: str) -> str:
    """The metric, with its error bar or standard deviation if it has one."""
    value, interval, deviation = (record.metrics.get(key + suffix) for suffix in ("", "_interval", "_std"))
    if value is None:
        return "not offered by these features or this reference"
    if isinstance(interval, tuple):
        return f"{value:.4f}  (95 %: {interval[0]:.3f} to {interval[1]:.3f})"
    return f"{value:.4f} ± {deviation:.4f}" if deviation else f"{value:.4f}"


def _label(key: str, labels: dict[str, str]) -> str:
    """The name of a metric; for a key such as `fid_std`, the name with the suffix after it."""
    base, _, suffix = key.rpartition("_")
    return f"{labels[base]}: {suffix}" if key not in labels and base in labels else labels.get(key, key)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, tuple):
        return " to ".join(f"{part:.4g}" if isinstance(part, float) else str(part) for part in value)
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text[:40]
