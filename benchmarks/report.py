"""What benchmarks share: processes of their own, works that take turns, and results as JSON files.

A file of results is named by date, hardware and benchmark, and contains the versions used.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """The result of `function(*arguments)` in a new process, whose peak memory is that of this call alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def seconds_in_turns(
    works: Mapping[str, Callable[[], object]],
    turns: int,
    *,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each work in each turn, after one untimed turn. If the machine slows down, all works become slower."""
    from mpdit_core.runtime.device import synchronize

    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns + 1):
        for name, work in works.items():
            synchronize(device)
            started = clock()
            work()
            synchronize(device)
            seconds[name].append(clock() - started)
    return {name: taken[1:] for name, taken in seconds.items()}


def write_result(name: str, data: dict[str, Any]) -> Path:
    """Writes `results/<date>-<hardware>-<name>.json` and returns its path; a result of the same day is replaced."""
    import torch

    import mpdit_core

    about = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "mpdit": mpdit_core.__version__,
    }
    path = result_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | data, indent=2) + "\n", encoding="utf-8")
    return path


def read_result(name: str) -> dict[str, Any]:
    """What `write_result` wrote today on this hardware; nothing if it did not."""
    path = result_path(name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def result_path(name: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", hardware().lower()).strip("-")
    return RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{slug}-{name}.json"


def hardware() -> str:
    return gpu_name() or cpu_name()


def gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def cpu_name() -> str:
    """Model of the processor, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return names[0].partition("@")[0].strip() if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
