"""`mpdit profile-flops`: the compute of models, and plans of trainings, searches for shapes, and measurements."""

from __future__ import annotations

from mpdit_core.errors import UserError
from mpdit_core.profiling import document, figure
from mpdit_core.profiling.count import model_cost, to_csv
from mpdit_core.profiling.options import ProfileOptions, parse_keys
from mpdit_core.profiling.plan import parse_plan, plan
from mpdit_core.profiling.results import Measurement, Plan, ProfileResult
from mpdit_core.profiling.search import SearchOptions, search
from mpdit_core.profiling.targets import Target, find_targets
from mpdit_core.reporting import Reporter, Saved, silent
from mpdit_core.runtime.files import write_text

DRAWN_BY_DEFAULT = ("dit-xl-256", "xl-256", "v2-xl-512")
CHOSEN_BY_DEFAULT = "xl-256"  # the model of a plan or search that names none


def profile_flops(options: ProfileOptions, *, report: Reporter = silent) -> ProfileResult:
    """Counts, and whatever else `options` ask for.

    Raises:
        UserError: an unknown model, key, value or file ending, or options that exclude each other; before any work.
    """
    planned = None if options.plan is None else parse_plan(options.plan)
    searched = None if options.search is None else parse_keys(SearchOptions, options.search, origin="search")
    others = [name for name in ("plan", "measure", "plot", "csv", "markdown") if getattr(options, name)]
    if searched is not None and others:
        raise UserError(
            f"a search cannot be combined with {', '.join(others)}",
            code="conflicting-options",
            expected="a search alone",
            remedy="search first, then profile a model that was found",
        )
    if options.plot:
        figure.check(options.plot)
    named = bool(options.preset or options.model)
    if options.measure and not named:
        raise UserError(
            "no model is given to measure",
            code="no-model",
            expected="a preset or a model",
            remedy="--preset NAME, or MODEL",
        )
    targets = find_targets(options, report=report)
    chosen = targets if named else [next((t for t in targets if t.run.preset == CHOSEN_BY_DEFAULT), targets[0])]
    if searched is not None:
        return ProfileResult(convention=options.convention, search=search(chosen[0], searched))
    models = tuple(model_cost(target, options) for target in targets)
    plans: tuple[Plan, ...] = ()
    if planned:
        is_measured = planned.hardware == "measured" and planned.peak_tflops is None
        rate = _measured_tflops(options.device) if is_measured else None
        plans = tuple(plan(target, planned, measured_tflops=rate) for target in chosen)
    if options.plot:
        if named:
            drawn = _beside_dense(targets)
        else:
            drawn = find_targets(options.model_copy(update={"preset": DRAWN_BY_DEFAULT, "resolution": None}))
        figure.draw(drawn, options.plot, convention=options.convention)
        report(Saved(what="figure", path=options.plot))
    if options.csv:
        write_text(options.csv, to_csv(models))
        report(Saved(what="table", path=options.csv))
    if options.markdown:
        write_text(options.markdown, document.write(models, named=named))
        report(Saved(what="document", path=options.markdown))
    measured: tuple[Measurement, ...] = ()
    if options.measure:
        from mpdit_core.profiling.measure import measure
        from mpdit_core.runtime.device import select_device

        device = select_device(options.device)
        measured = tuple(measure(target, options.batch_size, device=device, report=report) for target in targets)
    return ProfileResult(convention=options.convention, models=models, plans=plans, measured=measured)


def _measured_tflops(name: str) -> float:
    """The rate of this device's large matrix products in its faster data type, in TFLOP/s."""
    import torch

    from mpdit_core.runtime.device import matmul_rate, select_device

    device = select_device(name)
    return max(matmul_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)) / 1e12


def _beside_dense(targets: list[Target]) -> list[Target]:
    """The models, each after its dense counterpart."""
    drawn: list[Target] = []
    for target in targets:
        dense = Target(f"counterpart of {target.name}", target.run.model_copy(update={"model": target.model.dense()}))
        if not target.is_dense and all(dense.model != other.model for other in drawn):
            drawn.append(dense)
        drawn.append(target)
    return drawn
