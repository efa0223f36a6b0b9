"""Counts as tables for people and as plain records for programs."""

from __future__ import annotations

import csv
import io
from typing import Any

from mpdit_core.model.compute import WHY_CONVENTIONS_DIFFER, Convention, count
from mpdit_core.model.memory import inference_memory, training_memory
from mpdit_core.profiling.targets import Target
from mpdit_core.reporting import Table

SAMPLING_STEPS = 250  # of the papers; with guidance every step evaluates the network twice
BLOCKS = " ▏▎▍▌▋▊▉█"
BAR_WIDTH = 4


def record(target: Target, *, convention: Convention, batch_size: int) -> dict[str, Any]:
    """Everything counted of one model, in plain exact integers (MACs and bytes); shared by JSON and CSV."""
    model = target.model
    true, paper = count(model), count(model, convention="paper")
    dense, dense_paper = count(model.dense()), count(model.dense(), convention="paper")
    used, dense_used = (paper, dense_paper) if convention == "paper" else (true, dense)
    training = {p: training_memory(model, batch_size, precision=p).total for p in ("float32", "bfloat16")}
    inference = {p: inference_memory(model, batch_size, precision=p).total for p in ("float32", "bfloat16")}
    return {
        "name": target.name,
        "resolution": target.resolution,
        "width": model.width,
        "num_heads": model.num_heads,
        "stages": [list(stage) for stage in model.stages],
        "tokens": [stage.tokens for stage in true.stages],
        "parameters": true.parameters,
        "parameters_with_positions": true.parameters_with_positions,
        "convention": convention,
        "macs": used.macs,
        "flops": used.flops,
        "macs_true": true.macs,
        "macs_paper": paper.macs,
        "linear_macs": true.linear_macs,
        "training_macs": true.training_macs,
        "training_step_macs": true.training_macs * batch_size,
        "batch_size": batch_size,
        "guided_sampling_macs": 2 * SAMPLING_STEPS * true.macs,
        "dense_macs": dense_used.macs,
        "ratio_to_dense": used.macs / dense_used.macs,
        "linear_ratio_to_dense": true.linear_macs / dense.linear_macs,
        "macs_by_kind": used.by_kind,
        "parameters_by_kind": true.parameters_by_kind,
        "macs_by_stage": [{"macs": s.macs, "parameters": s.parameters, **s.by_kind} for s in used.stages],
        "training_bytes": training,
        "inference_bytes": inference,
    }  # fmt: skip


def overview(records: list[dict[str, Any]], *, convention: Convention) -> Table:
    """A line a model. Of one resolution for all, the title says it and not every line: so it fits 80 columns."""
    resolutions = {r["resolution"] for r in records}
    alike = len(resolutions) == 1 and len(records) > 1
    image = f"image of {min(resolutions)} px" if alike else "image"
    rows = [
        [
            r["name"].partition(" @")[0] if alike else r["name"],
            millions(r["parameters"]),
            "/".join(str(n) for n in r["tokens"]),
            giga(r["macs_true"]),
            giga(r["macs_paper"]),
            f"{bar(r['ratio_to_dense'])} {r['ratio_to_dense']:>6.1%}",
        ]
        for r in records
    ]
    return Table(
        title=f"One forward pass of one {image}, in giga-MACs (the papers' “GFLOPs”)",
        columns=["model", "params", "tokens", "true", "paper", "of dense"],
        rows=rows,
        note="params: trainable, in millions.\n"
        f"of dense: the DiT of the same width, depth and finest patch, {convention} convention.\n"
        + WHY_CONVENTIONS_DIFFER,
    )


def bill(target: Target, *, convention: Convention) -> Table:
    """One model: kinds of work down, stages across."""
    counted = count(target.model, convention=convention)
    outside = {kind: total - sum(s.by_kind[kind] for s in counted.stages) for kind, total in counted.by_kind.items()}
    columns = [*(f"patch {s.patch_size}" for s in counted.stages), "outside", "all", "share"]
    rows = [["blocks", *(str(s.depth) for s in counted.stages), "", str(target.model.depth), ""]]
    rows += [["tokens", *(str(s.tokens) for s in counted.stages), "", "", ""]]
    for kind, total in counted.by_kind.items():
        cells = [s.by_kind[kind] for s in counted.stages]
        rows.append([kind, *(giga(n) for n in (*cells, outside[kind], total)), f"{total / counted.macs:.1%}"])
    cells = [s.macs for s in counted.stages]
    rows.append(["GMACs", *(giga(n) for n in (*cells, sum(outside.values()), counted.macs)), "100.0%"])
    in_stages = [s.parameters for s in counted.stages]
    rest = counted.parameters - sum(in_stages)
    rows.append(["params M", *(millions(n) for n in (*in_stages, rest, counted.parameters)), ""])
    return Table(title=f"{target.name}: where the work is (giga-MACs, {convention} convention)",
                 columns=["", *columns], rows=rows)  # fmt: skip


def facts(target: Target, r: dict[str, Any]) -> dict[str, str]:
    """One model's totals, as labelled lines."""
    dense = "itself" if target.is_dense else f"{giga(r['dense_macs'])} GMACs"
    batch = r["batch_size"]
    return {
        "parameters": f"{r['parameters']:,} trainable, {r['parameters_with_positions']:,} with positions",
        "one image": f"{r['macs_true']:,} MACs, {2 * r['macs_true']:,} FLOPs",
        "… as published": f"{giga(r['macs_paper'])} GMACs",
        f"dense {dense}": f"{bar(1.0, 18)} 100.0%",
        f"this {giga(r['macs'])} GMACs": f"{bar(r['ratio_to_dense'], 18)} {r['ratio_to_dense']:.1%} "
        f"(linear layers {r['linear_ratio_to_dense']:.1%})",
        f"training step of {batch}": f"{tera(r['training_step_macs'])} TMACs (forward and backward)",
        "an image, 250 guided steps": f"{tera(r['guided_sampling_macs'])} TMACs ({2 * SAMPLING_STEPS} evaluations, "
        "no autoencoder)",
        f"memory to train, {batch} a step": f"{gib(r['training_bytes']['bfloat16'])} in bfloat16, "
        f"{gib(r['training_bytes']['float32'])} in float32",
        f"memory to infer, {batch} rows": f"{gib(r['inference_bytes']['bfloat16'])} in bfloat16, "
        f"{gib(r['inference_bytes']['float32'])} in float32",
    }  # fmt: skip


def to_csv(records: list[dict[str, Any]]) -> str:
    """One row a model; lists are joined by spaces, kinds get a column each."""
    flat = [_flat(r) for r in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(r: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in r.items():
        if key == "macs_by_stage":
            continue
        if key == "stages":
            row[key] = " ".join(f"{patch}x{depth}" for patch, depth in value)
        elif isinstance(value, list):
            row[key] = " ".join(str(item) for item in value)
        elif isinstance(value, dict):
            row |= {f"{key}_{name}": inner for name, inner in value.items()}
        else:
            row[key] = value
    return row


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, its note as a paragraph."""
    lines = ["| " + " | ".join(table.columns) + " |", "|---" + "|---:" * (len(table.columns) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    note = ["", table.note.replace("\n", "\n\n")] if table.note else []
    return "\n".join([f"**{table.title}**", "", *lines, *note]) + "\n"


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """`share` of `width` characters, in eighths; more than the whole is drawn as the whole."""
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


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
