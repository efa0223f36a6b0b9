"""`mpdit demo`: the whole pipeline on real digits."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.demo.options import DemoOptions


@options_command(DemoOptions)
def command(options: DemoOptions) -> None:
    """Run the whole pipeline on real digits, offline, in a few minutes: encode, train, sample, evaluate, count MACs."""
    from mpdit_cli.commands.profile_flops import parts_of
    from mpdit_core.demo import demo
    from mpdit_core.profiling import ProfileResult

    result = console.run(demo, options)
    cost = ProfileResult(convention=result.cost.convention, models=(result.cost,))
    ratio = result.distance / result.distance_of_real
    summary = console.Summary(
        title="the demo's model",
        rows={
            "recognised": f"{result.recognised:.1%} of {result.samples} samples at guidance scale "
            f"{result.guidance_scale} (97 % is expected)",
            "distance": f"{result.distance:.3f} to real digits, unguided; {ratio:.2f} × that of other real digits "
            f"({result.distance_of_real:.3f}; at most 4 × is expected)",
            "picture": str(result.picture),
        },
        next_command=f"mpdit sample {result.run} --classes 7 --guidance-scale 2",
    )
    console.show(result, *parts_of(cost, named=True), summary)
