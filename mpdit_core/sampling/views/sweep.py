"""`mpdit sample --sweep KEY=V1,V2,…`: the same noise and labels under different options, on one sheet with axes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpdit_core import plugins
from mpdit_core.errors import UserError
from mpdit_core.pictures import contact_sheet, save_png
from mpdit_core.reporting import Event, Progress
from mpdit_core.sampling.generator import SampleOptions, changed, check, prepare
from mpdit_core.sampling.views.common import ViewRequest, finish, opened
from mpdit_core.settings import parse_assignments, validate

OPTIONS = (
    "sampler", "num_steps", "guidance_scale", "guidance_interval", "guidance_schedule", "guide", "classes", "seed",
    "precision",
)  # fmt: skip
"""Options that may be swept; any other key is taken as an option of the sampler, such as grid."""

WORDS = ("sampler", "guidance_schedule", "guide", "classes", "precision")  # values that are text, even if digits

SHEET = 1024  # images at most


@dataclass(frozen=True)
class Axis:
    """One key and the values it takes, as text for people and as values."""

    key: str
    texts: tuple[str, ...]
    values: tuple[Any, ...]


def read_sweeps(texts: Sequence[str]) -> list[Axis]:
    """`["guidance_scale=1,2", "num_steps=10,50"]` → two axes. An interval is written LO:HI, since commas part values.

    Raises:
        UserError: no KEY=V1,V2, the same key twice, or more than two keys.
    """
    axes = [_read(text) for text in texts]
    if len(axes) > 2:
        raise UserError(f"--sweep is given {len(axes)} times", expected="one key, or two that make the axes of a sheet")
    if len({axis.key for axis in axes}) < len(axes):
        raise UserError(f"--sweep {axes[0].key} is given twice", expected=f"--sweep {axes[0].key}=V1,V2,… once")
    return axes


def _read(text: str) -> Axis:
    key, equals, rest = text.partition("=")
    key = key.strip().replace("-", "_").removeprefix("sampler.")
    values = [part.strip() for part in rest.split(",") if part.strip()]
    if not equals or not key or not values:
        raise UserError(f"--sweep {text}", expected="KEY=V1,V2,…", remedy="e.g. --sweep guidance_scale=1,1.5,2")
    return Axis(key, tuple(values), tuple(_value(key, value) for value in values))


def _value(key: str, text: str) -> Any:
    if key in WORDS:
        return text
    if key == "guidance_interval":
        try:
            lo, hi = (float(part) for part in text.split(":"))
        except ValueError:
            raise UserError(f"--sweep guidance_interval={text}", expected="LO:HI, such as 0.1:0.8") from None
        return lo, hi
    return parse_assignments([f"value={text}"])["value"]


def with_value(options: SampleOptions, key: str, value: Any) -> SampleOptions:
    """`options` with one of them changed. Raises `UserError` where the value does not fit."""
    values = options.model_dump()
    if key in OPTIONS:
        values[key] = value
    elif key in SampleOptions.model_fields:
        raise UserError(f"--sweep {key}=… is the same for a whole sheet", expected=", ".join(OPTIONS))
    else:
        values["sampler_options"] = {**values["sampler_options"], key: value}
    return validate(SampleOptions, values, origin="--sweep")


def sweep(request: ViewRequest, texts: Sequence[str]) -> Iterator[Event]:
    """Writes sweep.png: the first key runs down, the second across (one key alone: across).

    Raises:
        UserError: as `read_sweeps` and `prepare`, for whichever cell; nothing is written then.
    """
    axes = read_sweeps(texts)
    across, down = axes[-1], axes[0] if len(axes) == 2 else Axis("", ("",), (None,))
    cells = len(across.values) * len(down.values)
    each = request.options.num_samples
    if cells * each > SHEET:
        raise UserError(
            f"{cells} cells of {each} images on one sheet", expected=f"up to {SHEET}", remedy="a smaller --num-samples"
        )
    place = opened(request, "sweep")
    table: list[list[SampleOptions]] = []
    for row in down.values:
        options = with_value(request.options, down.key, row) if down.key else request.options
        table.append([with_value(options, across.key, column) for column in across.values])
    for options in (cell for row in table for cell in row):
        check(place.folder, options)

    generation = prepare(place.folder, table[0][0], device=place.device)
    sheet: list[list[Tensor]] = []
    measured: list[dict[str, Any]] = []
    for i, row in enumerate(table):
        sheet.append([])
        for j, options in enumerate(row):
            yield Progress(task="sweep", done=len(measured), total=cells, unit="cells")
            generation = changed(generation, place.folder, options)
            started = time.monotonic()
            batches = list(generation.batches(range(generation.num_blocks)))
            sheet[-1].append(torch.cat([b.images for b in batches if b.images is not None]))
            measured.append(
                {across.key: across.texts[j]}
                | ({down.key: down.texts[i]} if down.key else {})
                | {"plugin": plugins.record("samplers", options.sampler, generation.sampler)}
                | {"nfe": batches[0].nfe, "passes": batches[0].passes, "seconds": time.monotonic() - started}
            )
    yield Progress(task="sweep", done=cells, total=cells, unit="cells")
    picture = place.out / "sweep.png"
    drawn = contact_sheet(
        sheet, row_labels=down.texts, column_labels=across.texts, row_axis=down.key, column_axis=across.key
    )
    save_png(drawn, picture)
    rows = {axis.key: ", ".join(axis.texts) for axis in axes} | {"images": f"{each} in each of {cells} cells"}
    yield from finish(place, request, "sweep", picture=picture, rows=rows, data={"cells": measured})
