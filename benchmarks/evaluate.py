"""The Fréchet solve for 2,048 features against `scipy.linalg.sqrtm`, in one run: `python benchmarks/evaluate.py`."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import scipy
import scipy.linalg
import torch
from report import write_result

from mpdit_core.metrics.scores import frechet_distance
from mpdit_core.metrics.statistics import statistics_of

FEATURES, ROWS, TURNS = 2048, 4096, 3


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    draw = torch.Generator().manual_seed(0)
    a, b = (statistics_of(torch.relu(torch.randn(ROWS, FEATURES, generator=draw) + s)) for s in (0.0, 0.1))
    times: dict[str, list[float]] = {"symmetric": [], "sqrtm": []}
    for _ in range(1 + TURNS):  # in turns; the first of each warms up
        started = time.perf_counter()
        mine = frechet_distance(a, b)
        times["symmetric"].append(time.perf_counter() - started)
        started = time.perf_counter()
        root = np.real(scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()))
        times["sqrtm"].append(time.perf_counter() - started)
    symmetric, sqrtm = (statistics.median(taken[1:]) for taken in times.values())
    away = (a.mean - b.mean).numpy()
    theirs = away @ away + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root)
    data = {
        "scipy": scipy.__version__,
        "features": FEATURES,
        "rows": ROWS,
        "seconds_symmetric": symmetric,
        "seconds_sqrtm": sqrtm,
        "times_faster": sqrtm / symmetric,
        "target_times_faster": 5,
        "relative_difference": float(abs(mine - theirs) / abs(theirs)),
    }
    print(write_result("evaluate", data), data)


if __name__ == "__main__":
    main()
