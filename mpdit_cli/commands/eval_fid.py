"""`mpdit eval-fid WHAT`: FID, sFID, Inception Score, precision and recall, with their protocol attached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpdit_cli import console
from mpdit_cli.fields import Nproc, options_command
from mpdit_core.errors import UserError
from mpdit_core.evaluation.options import EvaluateOptions


@options_command(EvaluateOptions, name="mpdit eval-fid")
def command(
    options: EvaluateOptions,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="A.json B.json",
            help="Show two records side by side, and whether their figures may be compared.",
            rich_help_panel="Other work",
        ),
    ] = None,
    nproc: Nproc = "auto",
) -> None:
    """Measure a model or finished samples against real images, by the protocol of published numbers."""
    from mpdit_core import evaluation

    if compare is not None:
        console.show(console.run(evaluation.compare_records, *compare))
        return
    if options.what is None:
        raise UserError(
            "nothing to evaluate",
            code="nothing-given",
            expected="a model, or finished samples",
            remedy="e.g. mpdit eval-fid runs/xl-256-1",
        )
    job = evaluation.evaluate
    if options.make_reference is not None:
        job = evaluation.make_reference
    elif options.sweep:
        job = evaluation.evaluate_sweep
    console.show(console.run(job, options, nproc=nproc, device=options.device))
