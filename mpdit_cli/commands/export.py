"""`mpdit export MODEL OUT`: a model to share, as a folder or on the Hub."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.interop.options import ExportOptions


@options_command(ExportOptions)
def command(options: ExportOptions) -> None:
    """Write a model to share, as a folder or on the Hub: weights, configuration and a model card.

    Example: mpdit export runs/xl-256-1 models/mine --push me/mpdit-xl
    """
    from mpdit_core.interop import export_model

    result = console.run(export_model, options)
    rows = {"folder": str(result.path), "size": f"{result.bytes / 2**20:,.1f} MiB"}
    if result.images is not None:
        rows["images"] = f"{result.images:,}"
        rows["to read it"] = f'datasets.load_dataset("{result.path}", split="train")'
    if result.relative_difference is not None:
        rows["checked"] = f"differs from the network by {result.relative_difference:.1e} of the largest velocity"
    if result.url:
        rows["on the Hub"] = result.url
    where = f"hf:{options.push}" if options.push else result.path
    following = {"mpdit": f"mpdit sample {where}", "space": f"python {result.path}/app.py"}
    title, next_command = f"exported {options.model} as {result.format}", following.get(result.format, "")
    console.show(result, console.Summary(title=title, rows=rows, next_command=next_command))
