"""Configurations within a compute budget: a fixed grid of widths, depths and stages, each counted by the formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.errors import UserError
from mpdit_core.model.compute import count
from mpdit_core.profiling.tables import giga, millions
from mpdit_core.profiling.targets import Target
from mpdit_core.reporting import Table
from mpdit_core.settings import Settings, parse_assignments, validate

HEAD_WIDTH = 64


class SearchOptions(Settings):
    """What `--search "KEY=VALUE, …"` may hold. The shapes stay within what has been published and trained."""

    target_macs: PositiveFloat = Field(description="most MACs of one forward pass of one image")
    levels: tuple[int, ...] = Field(default=(1, 2, 3), strict=False, description="stages a model may have")
    min_fine_blocks: PositiveInt = Field(default=4, description="blocks at the finest patch; the paper's k, 4 to 8")
    min_depth: PositiveInt = Field(default=12, description="blocks in all, least")
    max_depth: PositiveInt = Field(default=32, description="blocks in all, most")
    shortest: PositiveFloat = Field(default=32.0, description="width / depth, least (DiT-S: 32)")
    widest: PositiveFloat = Field(default=72.0, description="width / depth, most (DiT-B: 64)")
    show: PositiveInt = Field(default=10, description="lines")


def parse_search(text: str) -> SearchOptions:
    """`"target_macs=30e9"` → options; a list's brackets may hold commas. Raises `UserError` for anything else."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter in ", " and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    tree = parse_assignments(part for part in parts if part)
    for key in ("target_macs", "shortest", "widest"):  # 30000000000 is as good as 30e9
        if isinstance(tree.get(key), int):
            tree[key] = float(tree[key])
    return validate(SearchOptions, tree, origin="--search")


def search(base: Target, options: SearchOptions) -> list[dict[str, Any]]:
    """The best models of `base`'s resolution and switches within the budget: most parameters first.

    Of the same stages' patches and depth only the widest that fits is kept, so that the lines differ in kind.

    Raises:
        UserError: not even the smallest shape fits.
    """
    best: dict[tuple[int, int, int], dict[str, Any]] = {}
    smallest: int | None = None
    kept_of = count(base.model).parameters
    for model in _shapes(base.model, options):
        counted = count(model)
        smallest = min(counted.macs, smallest or counted.macs)
        if counted.macs > options.target_macs:
            continue
        key = (len(model.stages), model.width, model.stages[-1].depth)
        row = {
            "width": model.width,
            "num_heads": model.num_heads,
            "stages": [list(stage) for stage in model.stages],
            "parameters": counted.parameters,
            "parameters_kept": counted.parameters / kept_of,
            "macs": counted.macs,
            "set": _ready(model),
        }
        if key not in best or row["parameters"] > best[key]["parameters"]:
            best[key] = row
    if not best:
        raise UserError(
            f"--search target_macs={options.target_macs:g}: no configuration fits",
            expected="nothing to search: loosen levels, depths or widths"
            if smallest is None
            else f"{smallest:g} or more",
        )
    return sorted(best.values(), key=lambda row: (-row["parameters"], row["macs"]))[: options.show]


def _shapes(base: ModelConfig, options: SearchOptions) -> Iterator[ModelConfig]:
    finest = base.stages[-1].patch_size
    for width in range(4 * HEAD_WIDTH, 32 * HEAD_WIDTH + 1, HEAD_WIDTH):
        for depth in range(options.min_depth, options.max_depth + 1, 2):
            if not options.shortest <= width / depth <= options.widest:
                continue
            for stages in _stagings(depth, finest, options):
                if base.input_size % stages[0].patch_size:
                    continue
                yield base.model_copy(update={"width": width, "num_heads": width // HEAD_WIDTH, "stages": stages})


def _stagings(depth: int, finest: int, options: SearchOptions) -> Iterator[tuple[Stage, ...]]:
    if 1 in options.levels:
        yield (Stage(finest, depth),)
    for fine in range(options.min_fine_blocks, depth // 2 + 1, 2):
        if 2 in options.levels:
            yield (Stage(2 * finest, depth - fine), Stage(finest, fine))
        if 3 in options.levels:
            middle = max(fine, 2 * round((depth - fine) / 6))  # as v2-XL: 14, 8, 6
            if depth - fine - middle > 0:
                yield (Stage(4 * finest, depth - fine - middle), Stage(2 * finest, middle), Stage(finest, fine))


def _ready(model: ModelConfig) -> str:
    stages = ",".join(f"[{stage.patch_size},{stage.depth}]" for stage in model.stages)
    return f"--set model.width={model.width} --set model.num_heads={model.num_heads} --set 'model.stages=[{stages}]'"


def search_table(base: Target, found: list[dict[str, Any]], options: SearchOptions) -> Table:
    rows = [
        [
            " ".join(f"({patch},{depth})" for patch, depth in row["stages"]),
            str(row["width"]),
            str(row["num_heads"]),
            millions(row["parameters"]),
            f"{row['parameters_kept']:.0%}",
            giga(row["macs"]),
        ]
        for row in found
    ]
    return Table(
        title=f"At most {options.target_macs / 1e9:g} GMACs at {base.resolution} px, most parameters first",
        columns=["stages (patch, depth)", "width", "heads", "params M", f"of {base.name}", "GMACs"],
        rows=rows,
        note="More parameters are not more quality: in the paper 4 fine blocks cost FID against 6. Ready to use:",
    )
