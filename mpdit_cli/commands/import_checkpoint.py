"""`mpdit import FILE`: an official MPDiT, DiT or SiT checkpoint as a model of mpdit."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.interop.options import ImportOptions


@options_command(ImportOptions, name="mpdit import")
def command(options: ImportOptions) -> None:
    """Convert an official MPDiT, MPDiT v2, DiT or SiT checkpoint."""
    from mpdit_core.interop import import_checkpoint

    console.show(console.run(import_checkpoint, options))
