"""`mpdit demo`: the whole pipeline on real digits."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.demo.options import DemoOptions


@options_command(DemoOptions, name="mpdit demo")
def command(options: DemoOptions) -> None:
    """See the whole pipeline on real digits: encode, train, sample, evaluate, count. Offline, a few minutes."""
    from mpdit_core.demo import demo

    console.show(console.run(demo, options))
