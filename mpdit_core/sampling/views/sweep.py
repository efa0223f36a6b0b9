"""`mpdit sample --sweep KEY=V1,V2,…`: the same noise and labels with different options, on one sheet with axes."""

from __future__ import annotations

import time
from itertools import product

import torch
from torch import Tensor

from mpdit_core import plugins
from mpdit_core.errors import UserError
from mpdit_core.pictures import contact_sheet
from mpdit_core.reporting import Progress, Reporter, silent
from mpdit_core.sampling.generator import SamplingPlan, sampling_values
from mpdit_core.sampling.options import SampleOptions, ViewResult
from mpdit_core.sampling.views.common import View
from mpdit_core.sweeps import Axis, read_sweeps, with_values

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
    down, across = axes if len(axes) == 2 else (Axis("", ("",)), *axes)  # one key: one row without a name
    values = [
        {axis.key: text for axis, text in zip((down, across), texts, strict=True) if axis.key}
        for texts in product(down.texts, across.texts)
    ]
    view = View(options, "sweep", default_samples=DEFAULT_SAMPLES, images_per_sample=len(values), most=SHEET)
    cells = [with_values(options, changes) for changes in values]
    for cell in cells:
        SamplingPlan(view.folder, cell)

    first = view.generator(cells[0])
    images: list[Tensor] = []  # of each cell, [n, 3, H, W] uint8
    measured = []
    for cell, changes in zip(cells, values, strict=True):
        report(Progress(task="sweep", done=len(images), total=len(cells), unit="cells"))
        generator, started = first.changed(**sampling_values(cell)), time.monotonic()
        batches = list(generator.batches())
        images.append(torch.cat([batch.images for batch in batches]))
        measured.append(
            changes
            | {
                "weights_sha256": generator.folder.weights_sha256,
                "plugin": plugins.record("samplers", generator.options.sampler, generator.sampler),
                "nfe": batches[0].nfe,
                "passes": batches[0].passes,
                "seconds": time.monotonic() - started,
            }
        )
    report(Progress(task="sweep", done=len(cells), total=len(cells), unit="cells"))
    columns = len(across.texts)
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    image = contact_sheet(
        rows, row_labels=down.texts, column_labels=across.texts, row_axis=down.key, column_axis=across.key
    )
    facts = {axis.key: "; ".join(axis.texts) for axis in (down, across) if axis.key}
    facts["images"] = f"{view.num_samples} in each of {len(cells)} cells"
    return view.finish(image, first, facts=facts, data={"cells": measured}, report=report)
