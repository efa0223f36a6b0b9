"""All counts of a model as one record, and such records as CSV. Torch is imported for some objectives only."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from mpdit_core.config import FLOW_MATCHING
from mpdit_core.model.compute import count
from mpdit_core.model.memory import inference_memory, training_memory
from mpdit_core.profiling.options import ProfileOptions
from mpdit_core.profiling.results import Added, ModelCost
from mpdit_core.profiling.targets import Target

SAMPLING_STEPS = 250  # as in the papers; with guidance, every step takes two passes through the network


def model_cost(target: Target, options: ProfileOptions) -> ModelCost:
    """The counts of `target`, exact integers."""
    model, batch_size, convention = target.model, options.batch_size, options.convention
    true, paper, used = count(model), count(model, convention="paper"), count(model, convention=convention)
    dense, dense_used = count(model.dense()), count(model.dense(), convention=convention)
    objective = _added(target, options)
    return ModelCost(
        name=target.name,
        preset=target.run.preset,
        resolution=target.resolution,
        width=model.width,
        num_heads=model.num_heads,
        stages=model.stages,
        tokens=tuple(stage.tokens for stage in true.stages),
        parameters=true.parameters,
        parameters_with_positions=true.parameters_with_positions,
        convention=convention,
        macs=used.macs,
        flops=used.flops,
        macs_true=true.macs,
        macs_paper=paper.macs,
        linear_macs=true.linear_macs,
        training_macs=true.training_macs,
        objective=objective,
        training_step_macs=(true.training_macs + objective.macs) * batch_size,
        batch_size=batch_size,
        guided_sampling_macs=2 * SAMPLING_STEPS * true.macs,
        is_dense=target.is_dense,
        dense_macs=dense_used.macs,
        ratio_to_dense=used.macs / dense_used.macs,
        linear_ratio_to_dense=true.linear_macs / dense.linear_macs,
        macs_by_kind={**used.by_kind},
        parameters_by_kind={**true.parameters_by_kind},
        macs_by_stage=tuple({"macs": s.macs, "parameters": s.parameters, **s.by_kind} for s in used.stages),
        training_bytes={p: training_memory(model, batch_size, precision=p).total for p in ("float32", "bfloat16")},
        inference_bytes={p: inference_memory(model, batch_size, precision=p).total for p in ("float32", "bfloat16")},
    )


def _added(target: Target, options: ProfileOptions) -> Added:
    """The cost that the objective adds to training. Terms other than flow matching are run to be counted."""
    if target.run.objective.keys() == {FLOW_MATCHING}:
        return Added()
    from mpdit_core.flow.added_cost import added_cost

    typed = options.settings.get("objective", {})
    parameters, macs = added_cost(target.run, trusted=lambda name: name in typed)
    return Added(parameters=parameters, macs=macs)


def to_csv(models: Sequence[ModelCost]) -> str:
    """One row per model. Lists are joined by spaces, and each kind of work has a column."""
    rows = [_csv_row(model) for model in models]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(model: ModelCost) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in model.model_dump(exclude={"macs_by_stage"}).items():
        if key == "stages":
            row[key] = " ".join(f"{patch}x{depth}" for patch, depth in value)
        elif isinstance(value, tuple):
            row[key] = " ".join(str(item) for item in value)
        elif isinstance(value, dict):
            row |= {f"{key}_{name}": inner for name, inner in value.items()}
        else:
            row[key] = value
    return row
