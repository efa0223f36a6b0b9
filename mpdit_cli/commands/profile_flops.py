"""`mpdit profile-flops`: parameters, compute and memory of models, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.profiling.options import ProfileOptions
from mpdit_core.table import Table

if TYPE_CHECKING:
    from mpdit_core.profiling import Measurement, PartTime, ProfileResult, SearchResult


@options_command(ProfileOptions)
def command(options: ProfileOptions) -> None:
    """Count the parameters, compute and memory of models, exactly; compare them with dense ones.

    Example: mpdit profile-flops --preset xl-256
    """
    from mpdit_core.profiling import profile_flops

    result = console.run(profile_flops, options)
    console.show(result, *parts_of(result, named=bool(options.preset or options.model)))


def parts_of(result: ProfileResult, *, named: bool) -> list[Table | console.Summary]:
    """The result for people; with details of each model if the user `named` them."""
    from mpdit_core.profiling import breakdown_table, facts, overview, plan_table

    if result.search is not None:
        return [search_table(result.search)]
    parts: list[Table | console.Summary] = [overview(result.models)]
    for model in result.models if named else ():
        parts += [breakdown_table(model), console.Summary(title=model.name, rows=facts(model))]
    if result.plans:
        parts.append(plan_table(result.plans))
    for measured in result.measured:
        parts.append(pass_table(measured))
        parts += [parts_table(measured.name, work, times) for work, times in measured.parts.items()]
    return parts


def search_table(found: SearchResult) -> Table:
    """One line per model, and below the table the settings that make each."""
    from mpdit_core.profiling import giga, millions

    rows = [
        [
            " ".join(f"({patch},{depth})" for patch, depth in shape.stages),
            str(shape.width),
            str(shape.num_heads),
            millions(shape.parameters),
            f"{shape.parameters_kept:.0%}",
            giga(shape.macs),
        ]
        for shape in found.shapes
    ]
    note = "More parameters do not mean more quality: in the paper, 4 fine blocks have a worse FID than 6. To use one:"
    return Table(
        title=f"At most {found.target_macs / 1e9:g} GMACs at {found.resolution} px, most parameters first",
        columns=["stages (patch, depth)", "width", "heads", "params M", f"of {found.base}", "GMACs"],
        rows=rows,
        note="\n".join([note, *(shape.set for shape in found.shapes)]),
    )


def pass_table(measured: Measurement) -> Table:
    """Whole passes, eager and compiled."""
    rows = [
        [
            f"{each.mode} {each.work}",
            f"{each.median_seconds * 1e3:.2f}",
            f"{each.p10_seconds * 1e3:.2f}–{each.p90_seconds * 1e3:.2f}",
            f"{each.images_per_second:.4g}",
            f"{each.flops_per_second / 1e9:,.4g}",
            f"{each.share_of_matmul:.1%}",
        ]
        for each in measured.passes
    ]
    return Table(
        title=f"{measured.name}: measured on {measured.device}, batch {measured.batch_size}",
        columns=["pass", "median ms", "10–90 %", "images/s", "GFLOP/s", "of matmul"],
        rows=rows,
        note="of matmul: share of the rate of this device's large matrix products. FLOPs by the true count.",
    )


def parts_table(name: str, work: str, times: tuple[PartTime, ...]) -> Table:
    """The time of an eager pass, by part of the network."""
    total = sum(each.median_seconds for each in times)
    rows = [
        [
            f"{each.stage} {each.kind}",
            f"{each.median_seconds * 1e3:.3f}",
            f"{each.p10_seconds * 1e3:.3f}–{each.p90_seconds * 1e3:.3f}",
            f"{each.median_seconds / total:.1%}",
            f"{each.flops / each.median_seconds / 1e9:,.4g}" if each.flops and each.median_seconds > 0 else "–",
        ]
        for each in times
    ]
    return Table(
        title=f"{name}: time of an eager {work} pass, by part",
        columns=["part", "median ms", "10–90 %", "share", "GFLOP/s"],
        rows=rows,
        note="rest: norms, modulation of the tokens, residuals, memory transfers"
        + (", loss and sums of gradients. " if work == "training" else ". ")
        + "Measured by torch.profiler, which slows down small models.",
    )
