"""`mpdit profile-flops`: parameters, compute and memory of models, exactly."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.profiling.options import ProfileOptions


@options_command(ProfileOptions, name="mpdit profile-flops")
def command(options: ProfileOptions) -> None:
    """Count the parameters, compute and memory of models, exactly; compare them with dense ones."""
    from mpdit_core.profiling import profile_flops

    console.show(console.run(profile_flops, options))
