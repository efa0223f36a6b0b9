"""The demo's quality and time on this machine: `python benchmarks/demo.py [--out DIR]` (a fresh folder by default)."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from report import write_result

from mpdit_core.demo import demo
from mpdit_core.reporting import Result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    out = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="mpdit-demo-"))
    start = time.monotonic()
    result = next(event for event in demo(out=out, device_name="auto") if isinstance(event, Result))
    figures = {k: v for k, v in result.data.items() if isinstance(v, int | float)}
    print(write_result("demo", figures | {"seconds": time.monotonic() - start}))


if __name__ == "__main__":
    main()
