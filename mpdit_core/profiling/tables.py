"""Counts as tables to read: on a terminal of 80 columns, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from mpdit_core.model.compute import WHY_CONVENTIONS_DIFFER
from mpdit_core.profiling.count import SAMPLING_STEPS
from mpdit_core.profiling.results import Added, ModelCost, Plan, TrainingCost
from mpdit_core.runtime.files import size_text
from mpdit_core.table import Table

BLOCKS = " ▏▎▍▌▋▊▉█"
BAR_WIDTH = 4


def overview(models: Sequence[ModelCost]) -> Table:
    """One line per model. Where all have the same resolution, only the title states it, so that lines stay short."""
    resolutions = {model.resolution for model in models}
    alike = len(resolutions) == 1 and len(models) > 1
    image = f"image of {min(resolutions)} px" if alike else "image"
    rows = [
        [
            model.name.partition(" @")[0] if alike else model.name,
            millions(model.parameters),
            "/".join(str(n) for n in model.tokens),
            giga(model.macs_true),
            giga(model.macs_paper),
            f"{bar(model.ratio_to_dense)} {model.ratio_to_dense:>6.1%}",
        ]
        for model in models
    ]
    return Table(
        title=f"One forward pass of one {image}, in giga-MACs (the papers' “GFLOPs”)",
        columns=["model", "params", "tokens", "true", "paper", "of dense"],
        rows=rows,
        note="params: trainable, in millions.\n"
        f"of dense: the DiT of the same width, depth and finest patch, {models[0].convention} convention.\n"
        + WHY_CONVENTIONS_DIFFER,
    )


def breakdown_table(model: ModelCost) -> Table:
    """One model, with a row per kind of work and a column per stage."""
    stages, kinds = model.macs_by_stage, model.macs_by_kind
    rows = [
        ["blocks", *(str(depth) for _, depth in model.stages), "", str(sum(depth for _, depth in model.stages)), ""],
        ["tokens", *(str(number) for number in model.tokens), "", "", ""],
    ]
    for kind, total in [*kinds.items(), ("macs", model.macs)]:
        inside = [stage[kind] for stage in stages]
        cells = [giga(n) for n in (*inside, total - sum(inside), total)]
        rows.append(["GMACs" if kind == "macs" else kind, *cells, f"{total / model.macs:.1%}"])
    inside = [stage["parameters"] for stage in stages]
    cells = [millions(n) for n in (*inside, model.parameters - sum(inside), model.parameters)]
    rows.append(["params M", *cells, ""])
    return Table(
        title=f"{model.name}: where the work is (giga-MACs, {model.convention} convention)",
        columns=["", *(f"patch {patch}" for patch, _ in model.stages), "outside", "all", "share"],
        rows=rows,
    )


def facts(model: ModelCost) -> dict[str, str]:
    """One model's totals, as labelled lines."""
    dense = "itself" if model.is_dense else f"{giga(model.dense_macs)} GMACs"
    training, inference = model.training_bytes, model.inference_bytes
    added, share = model.objective, model.objective.macs / model.training_macs
    objective = f"{added.parameters:,} parameters, {added.macs:,} MACs per image of a training step ({share:.2%})"
    return {
        "parameters": f"{model.parameters:,} trainable, {model.parameters_with_positions:,} with positions",
        "one image": f"{model.macs_true:,} MACs, {2 * model.macs_true:,} FLOPs",
        "… as published": f"{giga(model.macs_paper)} GMACs",
        f"dense {dense}": f"{bar(1.0, 18)} 100.0%",
        f"this {giga(model.macs)} GMACs": f"{bar(model.ratio_to_dense, 18)} {model.ratio_to_dense:.1%} "
        f"(linear layers {model.linear_ratio_to_dense:.1%})",
        **({"objective adds": objective} if added != Added() else {}),
        f"training step of {model.batch_size}": f"{tera(model.training_step_macs)} TMACs (forward and backward)",
        f"one image, {SAMPLING_STEPS} guided steps": f"{tera(model.guided_sampling_macs)} TMACs "
        f"({2 * SAMPLING_STEPS} evaluations, no autoencoder)",
        f"memory to train, batch {model.batch_size}": f"{size_text(training['bfloat16'])} in bfloat16, "
        f"{size_text(training['float32'])} in float32",
        f"memory to infer, batch {model.batch_size}": f"{size_text(inference['bfloat16'])} in bfloat16, "
        f"{size_text(inference['float32'])} in float32",
    }


def plan_table(plans: Sequence[Plan]) -> Table:
    """Two lines per model: the cost of its training, and the cost for its dense counterpart."""
    first = plans[0]
    energy = first.model.kwh is not None
    rows = []
    for each in plans:
        rows.append([each.name, *_cells(each.model), f"{each.ratio_to_dense:.1%}"])
        rows.append(["  its dense DiT", *_cells(each.dense), "100.0%"])
    source = {
        "data sheet": "dense bfloat16, data sheet", "given": "as given",
        "measured": "large matrix products, measured",
    }[first.source]  # fmt: skip
    return Table(
        title=f"Training on {first.images:,} images, {first.devices} × {first.hardware}",
        columns=["model", "epochs", "EFLOPs", "device h", "wall time", *(["kWh"] if energy else []), "of dense"],
        rows=rows,
        note=f"peak {first.peak_tflops:.4g} TFLOP/s per device ({source}) × utilisation {first.utilisation:g}; "
        "forward and backward pass of every image, no evaluation, no data loading, perfect scaling. "
        "EFLOPs: 1e18 operations, 2 per MAC.",
    )


def _cells(cost: TrainingCost) -> list[str]:
    days = cost.wall_hours / 24
    wall = f"{days:.1f} d" if days >= 2 else f"{cost.wall_hours:.1f} h"
    kwh = [] if cost.kwh is None else [f"{cost.kwh:,.0f}"]
    return [str(cost.epochs), f"{cost.flops / 1e18:,.0f}", f"{cost.device_hours:,.0f}", wall, *kwh]


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A bar over `share` of `width` characters, in eighths; a share above 1 fills them."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (BLOCKS[part] if part else "")).ljust(width)


def giga(macs: int) -> str:
    value = macs / 1e9
    if 0 < value < 0.1:
        return f"{value:.2g}"
    return f"{value:.{2 if value < 1000 else 1 if value < 10_000 else 0}f}"


def tera(macs: int) -> str:
    return f"{macs / 1e12:,.4g}"


def millions(number: int) -> str:
    return f"{number / 1e6:.2f}"
