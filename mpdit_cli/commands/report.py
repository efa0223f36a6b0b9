"""`mpdit report RUN`: one HTML page about a run."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.run_report.options import ReportOptions


@options_command(ReportOptions)
def command(options: ReportOptions) -> None:
    """Write one HTML page about a run that opens offline: curves, previews, evaluations, configuration, compute.

    Example: mpdit report runs/xl-256-1
    """
    from mpdit_core.run_report import write_report

    result = console.run(write_report, options)
    console.show(result, console.Summary(title=f"reported {options.run}", rows=result.facts))
