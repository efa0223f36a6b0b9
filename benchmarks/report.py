"""Writes results of benchmarks: one JSON file each, named by date, hardware and benchmark, with the versions used."""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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
