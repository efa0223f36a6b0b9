"""`mpdit sample --sweep KEY=V1,V2,…`: the same noise and labels with different options, on one sheet with axes."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mpdit_core import plugins
from mpdit_core.errors import UserError
from mpdit_core.pictures import contact_sheet
from mpdit_core.reporting import Progress, Reporter, silent
from mpdit_core.sampling.generator import Generator, SamplingPlan, sampling_values
from mpdit_core.sampling.options import SampleOptions, ViewResult
from mpdit_core.sampling.views.common import open_view
from mpdit_core.sweeps import Axis, read_sweeps, with_values

DEFAULT_SAMPLES = 9
SHEET = 1024  # images at most


def sweep(options: SampleOptions, *, report: Reporter = silent) -> ViewResult:
    """Writes sweep.png: the values of the first key downwards, those of the second across; a single key across.

    Raises:
        UserError: as `read_sweeps`, as `Generator` for any cell, or more than two keys. Nothing is written then.
    """
    down, across = _two_axes(read_sweeps(options.sweep))
    values = [
        {axis.key: text for axis, text in zip((down, across), texts, strict=True) if axis.key}
        for texts in product(down.texts, across.texts)
    ]
    view = open_view(options, "sweep", default_samples=DEFAULT_SAMPLES, images_per_sample=len(values), most=SHEET)
    cells = [with_values(options, changes) for changes in values]
    for cell in cells:
        SamplingPlan(view.folder, cell)

    first = view.generator(cells[0])
    images: list[Tensor] = []
    measured = []
    for cell, changes in zip(cells, values, strict=True):
        report(Progress(task="sweep", done=len(images), total=len(cells), unit="cells"))
        made, cost = _measure(first.changed(**sampling_values(cell)))
        images.append(made)
        measured.append(changes | cost)
    report(Progress(task="sweep", done=len(cells), total=len(cells), unit="cells"))
    columns = len(across.texts)
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    image = contact_sheet(
        rows, row_labels=down.texts, column_labels=across.texts, row_axis=down.key, column_axis=across.key
    )
    facts = {axis.key: "; ".join(axis.texts) for axis in (down, across) if axis.key}
    facts["images"] = f"{view.num_samples} in each of {len(cells)} cells"
    return view.finish(image, first, facts=facts, data={"cells": measured}, report=report)


def _two_axes(axes: list[Axis]) -> tuple[Axis, Axis]:
    """(down, across); a sweep of one key has one row without a name."""
    if len(axes) > 2:
        raise UserError(
            f"{len(axes)} keys for one sheet", code="too-many-keys", expected="one key, or two for the two axes"
        )
    return (axes[0] if len(axes) == 2 else Axis("", ("",))), axes[-1]


def _measure(generator: Generator) -> tuple[Tensor, dict[str, Any]]:
    """The images of one cell, [n, 3, H, W] uint8, and their cost."""
    started = time.monotonic()
    batches = list(generator.batches())
    return torch.cat([batch.images for batch in batches]), {
        "weights_sha256": generator.folder.weights_sha256,
        "plugin": plugins.record("samplers", generator.options.sampler, generator.sampler),
        "nfe": batches[0].nfe,
        "passes": batches[0].passes,
        "seconds": time.monotonic() - started,
    }
