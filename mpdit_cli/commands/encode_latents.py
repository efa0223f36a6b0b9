"""`mpdit encode-latents SOURCE`: images to latents, once, before training."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import Nproc, options_command
from mpdit_core.encoding.options import EncodeOptions


@options_command(EncodeOptions, name="mpdit encode-latents")
def command(options: EncodeOptions, nproc: Nproc = "1") -> None:
    """Encode a data set of images into latents, once, for training.

    Killed at any point, the same command resumes. `--set dataset.KEY=VALUE` sets an option of a data set plugin.
    """
    from mpdit_core.encoding import encode_latents

    result = console.run(encode_latents, options, nproc=nproc, device=options.device)
    console.show(result)
