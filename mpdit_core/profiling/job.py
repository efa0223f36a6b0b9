"""`mpdit profile-flops`: the compute of models, counted, compared, planned, searched, measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, PositiveInt

from mpdit_core.errors import UserError
from mpdit_core.model.compute import CONVENTIONS, Convention
from mpdit_core.profiling import document, figure, measure, plan, search, tables
from mpdit_core.profiling.targets import Target, find_targets
from mpdit_core.reporting import Event, Note, Result, Saved, Skipped, Summary
from mpdit_core.runtime.files import write_text
from mpdit_core.settings import Settings

DRAWN_BY_DEFAULT = ("dit-xl-256", "xl-256", "v2-xl-512")
SEARCHED_BY_DEFAULT = "xl-256"


class ProfileOptions(Settings):
    """What is asked of `profile`; see `mpdit profile-flops --help`."""

    model: str | None = None
    presets: tuple[str, ...] = Field(default=(), strict=False)
    assignments: tuple[str, ...] = Field(default=(), strict=False)
    resolution: int | None = None
    batch_size: PositiveInt = 1
    convention: str = "true"
    plot: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None
    plan: str | None = None
    search: str | None = None
    measure: bool = False
    device: str = "auto"


def profile(options: ProfileOptions) -> Iterator[Event]:
    """Counts, and whatever else is asked for. The `Result` holds every number, exact.

    Raises:
        UserError: an unknown model, key, convention, or file ending; before any work.
    """
    convention: Convention | None = next((c for c in CONVENTIONS if c == options.convention), None)
    if convention is None:
        raise UserError(f"--convention {options.convention}", expected=" or ".join(CONVENTIONS))
    planned = None if options.plan is None else plan.parse_plan(options.plan)
    searched = None if options.search is None else search.parse_search(options.search)
    if options.plot:
        figure.check(options.plot)
    named = bool(options.presets or options.model)
    if options.measure and not named:
        raise UserError("--measure runs a model: which?", remedy="add --preset NAME or a MODEL")
    targets, left_out = find_targets(
        presets=options.presets,
        model=options.model,
        assignments=options.assignments,
        resolution=options.resolution,
    )
    result: dict = {"convention": convention}
    for name, reason in left_out:
        yield Skipped(path=name, reason=reason)

    if searched is not None:
        base = targets[0] if named else _by_name(targets, SEARCHED_BY_DEFAULT)
        found = search.search(base, searched)
        yield search.search_table(base, found, searched)
        for row in found:
            yield Note(text=row["set"])
        yield Result(data=result | {"search": found})
        return

    records = [tables.record(t, convention=convention, batch_size=options.batch_size) for t in targets]
    result["models"] = records
    yield tables.overview(records, convention=convention)
    if named:
        for target, record in zip(targets, records, strict=True):
            yield tables.bill(target, convention=convention)
            yield Summary(title=target.name, rows=tables.facts(target, record))

    if planned is not None:
        rate = None
        if planned.hardware == "measured" and planned.peak_tflops is None:
            rate = measure.matmul_tflops(options.device)
        chosen = targets if named else [_by_name(targets, SEARCHED_BY_DEFAULT)]
        plans = [plan.plan(target, planned, measured_tflops=rate) for target in chosen]
        result["plans"] = plans
        yield plan.plan_table(plans, planned)
    if options.plot:
        figure.draw(_drawn(targets, named=named), options.plot, convention=convention)
        yield Saved(what="figure", path=options.plot)
    if options.csv:
        write_text(options.csv, tables.to_csv(records))
        yield Saved(what="table", path=options.csv)
    if options.markdown:
        write_text(options.markdown, document.write(targets, records, convention=convention, named=named))
        yield Saved(what="document", path=options.markdown)
    if options.measure:
        result["measured"] = []
        for target in targets:
            result["measured"].append((yield from measure.measure(target, options.batch_size, device=options.device)))
    yield Result(data=result)


def _by_name(targets: list[Target], name: str) -> Target:
    """The preset of that name, at whatever resolution; the first target where it was left out."""
    return next((t for t in targets if t.run.preset == name), targets[0])


def _drawn(targets: list[Target], *, named: bool) -> list[Target]:
    if not named:
        return find_targets(presets=DRAWN_BY_DEFAULT, model=None, assignments=(), resolution=None)[0]
    drawn: list[Target] = []
    for target in targets:
        dense = Target(f"counterpart of {target.name}", target.run.model_copy(update={"model": target.model.dense()}))
        if not target.is_dense and all(dense.model != other.model for other in drawn):
            drawn.append(dense)
        drawn.append(target)
    return drawn
