"""`mpdit sample --sweep KEY=V1,V2,…`: the same noise and labels with different options, on one sheet with axes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from mpdit_core import plugins
from mpdit_core.errors import UserError
from mpdit_core.pictures import contact_sheet
from mpdit_core.reporting import Progress, Reporter, silent
from mpdit_core.sampling.generator import Generator, SamplingPlan
from mpdit_core.sampling.options import SampleOptions, ViewResult
from mpdit_core.sampling.views.common import View
from mpdit_core.sweeps import combinations, read_sweeps, with_values

DEFAULT_SAMPLES = 9
SHEET = 1024  # images at most


def sweep(options: SampleOptions, *, report: Reporter = silent) -> ViewResult:
    """Writes sweep.png: the values of the first key downwards, those of the second across; a single key across.

    Raises:
        UserError: as `read_sweeps`, as `Generator` for any cell, or more than two keys. Nothing is written then.
    """
    axes = read_sweeps(options.sweep)
    if len(axes) > 2:
        raise UserError(
            f"{len(axes)} keys for one sheet", code="too-many-keys", expected="one key, or two for the two axes"
        )
    values = combinations(axes)
    view = View(options, "sweep", default_samples=DEFAULT_SAMPLES, images_per_sample=len(values), most=SHEET)
    cells = [with_values(options, changes) for changes in values]
    for cell in cells:
        SamplingPlan(view.folder, cell)

    first = view.generator(cells[0])
    images: list[Tensor] = []  # of each cell, [n, 3, H, W] uint8
    measured = []
    for cell, changes in zip(cells, values, strict=True):
        report(Progress(task="sweep", done=len(images), total=len(cells), unit="cells"))
        made, cost = _measure(first.changed(**cell.sampling_values()))
        images.append(made)
        measured.append(changes | cost)
    report(Progress(task="sweep", done=len(cells), total=len(cells), unit="cells"))
    *down, (key, across) = axes.items()
    row_key, row_labels = down[0] if down else ("", ("",))  # one key: one row without a name
    rows = [images[start : start + len(across)] for start in range(0, len(images), len(across))]
    image = contact_sheet(rows, row_labels=row_labels, column_labels=across, row_axis=row_key, column_axis=key)
    facts = {key: "; ".join(texts) for key, texts in axes.items()}
    facts["images"] = f"{view.num_samples} in each of {len(cells)} cells"
    return view.finish(image, first, facts=facts, data={"cells": measured}, report=report)


def _measure(generator: Generator) -> tuple[Tensor, dict[str, Any]]:
    """The images [n, 3, H, W] of one cell, and what they cost. Its network is freed before that of the next is read."""
    started = time.monotonic()
    batches = list(generator.batches())
    return torch.cat([batch.images for batch in batches]), {
        "weights_sha256": generator.folder.weights_sha256,
        "plugin": plugins.record("samplers", generator.options.sampler, generator.sampler).as_json(),
        "nfe": batches[0].nfe,
        "passes": batches[0].passes,
        "seconds": time.monotonic() - started,
    }
