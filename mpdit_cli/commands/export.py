"""`mpdit export MODEL OUT`: a model for others, as a folder or on the Hub."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.interop.options import ExportOptions


@options_command(ExportOptions, name="mpdit export")
def command(options: ExportOptions) -> None:
    """Write a model for others: weights, configuration and a model card.

    Example: mpdit export runs/xl-256-1 models/mine --push me/mpdit-xl
    """
    from mpdit_core.interop import export_model

    console.show(console.run(export_model, options))
