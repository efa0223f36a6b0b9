"""The demo's quality and time on this machine: `python benchmarks/demo.py [--out DIR]` (a fresh folder by default)."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from report import write_result

from mpdit_core.demo import DemoOptions, demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    out = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="mpdit-demo-"))
    start = time.monotonic()
    result = demo(DemoOptions(out=out))
    seconds = time.monotonic() - start
    figures = result.model_dump(include={"recognised", "distance", "distance_of_real", "samples", "guidance_scale"})
    print(write_result("demo", figures | {"seconds": seconds}))


if __name__ == "__main__":
    main()
