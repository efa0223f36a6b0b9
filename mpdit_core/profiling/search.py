"""Models within a compute budget, from a fixed grid of widths, depths and stages; each is counted by the formula."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import PositiveFloat, PositiveInt

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.errors import UserError
from mpdit_core.model.compute import count
from mpdit_core.profiling.results import SearchResult, Shape
from mpdit_core.profiling.targets import Target
from mpdit_core.settings import Settings, setting

HEAD_WIDTH = 64


class SearchOptions(Settings):
    """The keys of `--search "KEY=VALUE, …"`. By default the shapes are like those that were published and trained."""

    target_macs: PositiveFloat = setting(..., "maximum MACs of one forward pass of one image")
    stages: tuple[int, ...] = setting((1, 2, 3), "allowed numbers of stages", strict=False)
    min_fine_blocks: PositiveInt = setting(4, "minimum number of blocks at the finest patch; the paper's k, 4 to 8")
    min_depth: PositiveInt = setting(12, "minimum number of blocks in all stages together")
    max_depth: PositiveInt = setting(32, "maximum number of blocks in all stages together")
    shortest: PositiveFloat = setting(32.0, "minimum width / depth (DiT-S: 32)")
    widest: PositiveFloat = setting(72.0, "maximum width / depth (DiT-B: 64)")
    show: PositiveInt = setting(10, "maximum number of models to show")


def search(base: Target, options: SearchOptions) -> SearchResult:
    """The models with the most parameters within the budget, with the resolution and switches of `base`.

    Of the models with the same width, number of stages and fine blocks, only the largest that fits is kept, so that no
    two lines are almost the same.

    Raises:
        UserError: the smallest shape is over the budget (`over-budget`), or no shape is within the bounds
            (`nothing-to-search`).
    """
    best: dict[tuple[int, int, int], Shape] = {}
    smallest: int | None = None
    base_parameters = count(base.model).parameters
    for model in _shapes(base.model, options):
        counted = count(model)
        smallest = min(counted.macs, smallest or counted.macs)
        if counted.macs > options.target_macs:
            continue
        key = (len(model.stages), model.width, model.stages[-1].depth)
        if key not in best or counted.parameters > best[key].parameters:
            best[key] = Shape(
                width=model.width,
                num_heads=model.num_heads,
                stages=model.stages,
                parameters=counted.parameters,
                parameters_kept=counted.parameters / base_parameters,
                macs=counted.macs,
                set=_flags(model),
            )
    if smallest is None:
        raise UserError(
            "no shapes are within the bounds of the search",
            code="nothing-to-search",
            expected="wider bounds for stages, depths or widths",
        )
    if not best:
        raise UserError(
            f"no model fits target_macs={options.target_macs:g}",
            code="over-budget",
            expected=f"target_macs of {smallest:g} or more",
        )
    found = sorted(best.values(), key=lambda shape: (-shape.parameters, shape.macs))[: options.show]
    return SearchResult(
        base=base.name, resolution=base.resolution, target_macs=options.target_macs, shapes=tuple(found)
    )


def _shapes(base: ModelConfig, options: SearchOptions) -> Iterator[ModelConfig]:
    finest = base.stages[-1].patch_size
    for width in range(4 * HEAD_WIDTH, 32 * HEAD_WIDTH + 1, HEAD_WIDTH):
        for depth in range(options.min_depth, options.max_depth + 1, 2):
            if not options.shortest <= width / depth <= options.widest:
                continue
            for stages in _stagings(depth, finest, options):
                if not base.input_size.is_multiple(stages[0].patch_size):
                    continue
                yield base.model_copy(update={"width": width, "num_heads": width // HEAD_WIDTH, "stages": stages})


def _stagings(depth: int, finest: int, options: SearchOptions) -> Iterator[tuple[Stage, ...]]:
    if 1 in options.stages:
        yield (Stage(finest, depth),)
    for fine in range(options.min_fine_blocks, depth // 2 + 1, 2):
        if 2 in options.stages:
            yield (Stage(2 * finest, depth - fine), Stage(finest, fine))
        if 3 in options.stages:
            middle = max(fine, 2 * round((depth - fine) / 6))  # as in v2-XL: 14, 8, 6
            if depth - fine - middle > 0:
                yield (Stage(4 * finest, depth - fine - middle), Stage(2 * finest, middle), Stage(finest, fine))


def _flags(model: ModelConfig) -> str:
    stages = ",".join(f"[{stage.patch_size},{stage.depth}]" for stage in model.stages)
    return f"--set model.width={model.width} --set model.num_heads={model.num_heads} --set 'model.stages=[{stages}]'"
