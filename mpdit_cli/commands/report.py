"""`mpdit report RUN [RUN…]`: one HTML page about a run, compared with other runs."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.run_report.options import ReportOptions


@options_command(ReportOptions)
def command(options: ReportOptions) -> None:
    """Write one HTML page about a run that opens offline: curves, previews, evaluations, configuration, compute.

    The loss is compared with recorded runs of the same network and data, and FID with published results. The curves
    of further runs are drawn over those of the first, and the settings that differ are listed.

    Example: mpdit report runs/xl-256-1 runs/xl-256-2
    """
    from mpdit_core.run_report import write_report

    result = console.run(write_report, options)
    compared = {f"{verdict.quantity}, compared": verdict.text for verdict in result.verdicts}
    console.show(result, console.Summary(title=f"reported {options.run}", rows=result.facts | compared))
