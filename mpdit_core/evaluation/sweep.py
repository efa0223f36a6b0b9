"""`eval-fid --sweep KEY=V1,V2,…`: every combination of options measured, as a table and a plot of the distance."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.evaluation.job import evaluate, open_what
from mpdit_core.evaluation.record import EvaluateOptions
from mpdit_core.models.model_folder import open_model
from mpdit_core.reporting import Event, Note, Progress, Result, Saved, Summary, Table, Warn
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import process_group
from mpdit_core.runtime.files import write_json, writing
from mpdit_core.sampling.generator import SampleOptions, check
from mpdit_core.sampling.views.sweep import Axis, read_sweeps, with_value

CHECKPOINT = "checkpoint"


def evaluate_sweep(
    what: str,
    options: EvaluateOptions,
    sampling: SampleOptions,
    sweeps: Sequence[str],
    *,
    out: Path | None,
    device: str = "auto",
) -> Iterator[Event]:
    """Measures every combination; each has its record, and one that was measured before is read.

    Args:
        sweeps: `KEY=V1,V2` with options of sampling, or `checkpoint=step-0001000,…` of the run `what`.

    Raises:
        UserError: as `evaluate`, for whichever combination, before the first is sampled.
    """
    axes = read_axes(sweeps)
    if open_what(what)[0] is None:
        raise UserError(f"--sweep of {what}, which holds finished samples", expected="a model")
    cells = list(product(*(range(len(axis.values)) for axis in axes)))
    planned = [_cell(what, sampling, axes, cell) for cell in cells]
    for where, chosen in planned:
        check(open_model(where), chosen)
    if find_spec("matplotlib") is None:
        yield Warn(text="there will be no plot without matplotlib: pip install 'mpdit[plot]'")
    records, said = [], set()
    with process_group(select_device(device)) as world:
        for number, (where, chosen) in enumerate(planned):
            yield Progress(task="sweep", done=number, total=len(cells), unit="evaluations")
            for event in evaluate(where, options, chosen, out=out, device=device):
                if isinstance(event, Result):
                    records.append(event.data)
                elif isinstance(event, Warn):
                    kind = re.sub(r"[\d.]+", "", event.text)
                    if kind not in said:
                        yield event
                    said.add(kind)
                elif isinstance(event, Progress):  # each has a rate of its own
                    yield replace(event, task=f"{event.task} ({number + 1} of {len(cells)})")
                elif not isinstance(event, Table | Summary | Saved):
                    yield event
        yield Progress(task="sweep", done=len(cells), total=len(cells), unit="evaluations")
        if world.is_main:
            yield from _report(what, axes, cells, records)


def read_axes(texts: Sequence[str]) -> list[Axis]:
    """As `read_sweeps` of `sample`, but of any number of keys. Raises `UserError`."""
    axes = [read_sweeps([text])[0] for text in texts]
    keys = [axis.key for axis in axes]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise UserError(f"--sweep {twice[0]} is given twice", expected=f"--sweep {twice[0]}=V1,V2,… once")
    return axes


def _cell(what: str, sampling: SampleOptions, axes: list[Axis], cell: tuple[int, ...]) -> tuple[str, SampleOptions]:
    """The model and the options of one combination."""
    where, options = what, sampling
    for axis, n in zip(axes, cell, strict=True):
        if axis.key == CHECKPOINT:
            where = str(_checkpoint(Path(what), axis.texts[n]))
        else:
            options = with_value(options, axis.key, axis.values[n])
    return where, options


def _checkpoint(run: Path, text: str) -> Path:
    """`step-0000800`, or a step as a number."""
    there = sorted((run / "checkpoints").glob("step-*"))
    for folder in there:
        if text == folder.name or (text.isdecimal() and int(text) == int(folder.name.removeprefix("step-"))):
            return folder
    raise UserError(
        f"--sweep {CHECKPOINT}={text}: {run} has no such checkpoint",
        expected=", ".join(folder.name for folder in there) or "a run with checkpoints",
    )


def _report(
    what: str, axes: list[Axis], cells: list[tuple[int, ...]], records: list[dict[str, Any]]
) -> Iterator[Event]:
    values = records[0]["metrics"]
    names = [n for n in values if values[n] is not None and not n.endswith(("_std", "_bias", "_interval"))]
    distance = next((n for n in ("fid", "unpublished_fid", "frechet_distance") if n in names), names[0])
    rows = [
        {axis.key: axis.texts[n] for axis, n in zip(axes, cell, strict=True)}
        | {"nfe": record["sampling"].get("nfe")}
        | record["metrics"]
        | {"record": record["path"]}
        for cell, record in zip(cells, records, strict=True)
    ]
    lowest = min(rows, key=lambda row: row[distance])
    shown = [axis.key for axis in axes] + names
    folder = Path(records[0]["path"]).parent
    identity = hashlib.sha256(json.dumps([row["record"] for row in rows]).encode()).hexdigest()[:10]
    table = folder / f"sweep-{identity}.json"
    label = records[0]["labels"].get(distance, distance)
    data = {"what": what, "axes": [axis.key for axis in axes], "plotted": distance, "rows": rows}
    write_json(table, data)
    note = f"{records[0]['count']} samples each against {records[0]['reference'].get('path')}"
    plot = None
    if find_spec("matplotlib") is not None:
        plot = table.with_suffix(".png")
        draw(axes, rows, distance, label, plot, title=note)
    yield Table(
        title=f"Sweep of {what}",
        columns=shown,
        rows=[[_text(row[name]) for name in shown] for row in rows],
        note=note,
    )
    yield Saved(what="table", path=table)
    if plot is not None:
        yield Saved(what="plot", path=plot)
    best = ", ".join(f"{axis.key} {lowest[axis.key]}" for axis in axes)
    if lowest[axes[0].key] in (axes[0].texts[0], axes[0].texts[-1]) and len(axes[0].texts) > 1:
        yield Note(text=f"the lowest lies at the end of {axes[0].key}: it may be lower beyond")
    yield Summary(title=f"{len(rows)} evaluations", rows={f"lowest {label}": f"{lowest[distance]:.4f} at {best}"})
    yield Result(data=data | {"path": str(table), "plot": str(plot) if plot else None, "lowest": lowest})


def draw(
    axes: Sequence[Axis], rows: Sequence[dict[str, Any]], metric: str, label: str, path: Path, *, title: str
) -> None:
    """`metric` against the guidance scale (or the first key), a line for each combination of the other keys."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    along = next((axis for axis in axes if axis.key == "guidance_scale"), axes[0])
    numeric = all(isinstance(value, int | float) for value in along.values)
    place = {text: float(along.values[n]) if numeric else float(n) for n, text in enumerate(along.texts)}
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = ", ".join(f"{axis.key.replace('_', ' ')} {row[axis.key]}" for axis in axes if axis is not along)
        lines.setdefault(name, []).append((place[row[along.key]], row[metric]))
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    panel = figure.add_subplot()
    for name, points in lines.items():
        points.sort()
        panel.plot([x for x, _ in points], [y for _, y in points], "o-", markersize=4, label=name)
    if not numeric:
        panel.set_xticks(list(place.values()), list(place))
    panel.set_xlabel(along.key.replace("_", " "))
    panel.set_ylabel(label)
    panel.set_title(title, loc="left", fontsize=9, color="#444444")
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    if any(lines):
        panel.legend(frameon=False, fontsize=9)
    with writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160)


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–" if value is None else str(value)
