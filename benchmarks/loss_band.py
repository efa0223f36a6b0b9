"""Records the losses of runs that differ only in their seeds. `mpdit report` compares other runs with them.

    mpdit demo
    mpdit train --preset digits --latents demo/latents/digits-16 --run runs/digits --seeds 5
    python benchmarks/loss_band.py digits runs/digits/seed* --what "the demo's digits" --command "mpdit train …"

Writes mpdit_core/run_report/bands/NAME.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev

from report import cpu_name, gpu_name

from mpdit_core.config import RESUMABLE, PreviewConfig
from mpdit_core.reporting import silent
from mpdit_core.run_report.bands import BANDS, WITHOUT_EFFECT, LossBand, windowed
from mpdit_core.run_report.run import Run, read_run
from mpdit_core.runtime.files import write_json
from mpdit_core.settings import changes

WINDOWS, MIN_LOSSES = 20, 5  # most windows, and fewest losses in one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the file")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--what", required=True, help="what was trained, in a few words")
    parser.add_argument("--command", required=True, help="command line that made the runs")
    arguments = parser.parse_args()
    runs = [read_run(path, path.name, number=n, report=silent) for n, path in enumerate(arguments.runs)]
    path = BANDS / f"{arguments.name}.json"
    write_json(path, recorded(runs, what=arguments.what, command=arguments.command).model_dump(mode="json"))
    print(path)


def recorded(runs: Sequence[Run], *, what: str, command: str) -> LossBand:
    """The band of `runs`, up to the end of the shortest run."""
    first = runs[0]
    if len(runs) < 2:
        raise SystemExit("give at least two runs, with different seeds: a band is their scatter")
    for run in runs[1:]:
        different = changes(first.config, run.config).keys() - RESUMABLE - WITHOUT_EFFECT
        if different or run.latents.fingerprint != first.latents.fingerprint:
            raise SystemExit(f"{run.name} differs from {first.name}: {', '.join(different) or 'latents'}")
    seen = min(int(run.history.last["images_seen"]) for run in runs)
    logged = min(sum(images <= seen for images, _ in run.losses_by_images()) for run in runs)
    windows = min(WINDOWS, logged // MIN_LOSSES)
    if windows == 0:
        raise SystemExit(f"a run has logged {logged} losses, but a band needs {MIN_LOSSES}")
    ends = tuple(round(seen * n / windows) for n in range(1, windows + 1))
    losses = [windowed(run.losses_by_images(), ends) for run in runs]
    means = [[fmean(window) for window in of_run] for of_run in losses]
    by_window = list(zip(*means, strict=True))
    own = {"folder": "", "source": Path(first.latents.source).name, "teacher": ""}
    return LossBand(
        what=what,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        hardware=gpu_name() or cpu_name(),
        command=command,
        config=first.config.model_copy(update={"preview": PreviewConfig()}),
        latents=first.latents.model_copy(update=own),
        runs=len(runs),
        images_seen=ends,
        loss=tuple(round(fmean(values), 5) for values in by_window),
        deviation=round(math.sqrt(fmean((stdev(values) / fmean(values)) ** 2 for values in by_window)), 5),
        logged=min(len(window) for of_run in losses for window in of_run),
    )


if __name__ == "__main__":
    main()
