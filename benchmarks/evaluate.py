"""The cost of `eval-fid` besides sampler and extractor: `python benchmarks/evaluate.py [PART …]`. The parts are:

    solve        the Fréchet solve for 2,048 features against `scipy.linalg.sqrtm`, in one run
    neighbours   precision and recall of 50,000 samples against 10,000 reference images: time and peak memory
    sums         adding a chunk of 4,096 images to the sums, and saving them: the cost of a fixed order of addition
    pass         an evaluation of a tiny model with the real Inception network (random weights): the time of each part

Without arguments it runs all in this order, because `pass` uses the results of the first two for its estimate for
50,000 images. Each part writes its own file under results/.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import RESULTS, in_new_process, seconds_in_turns, write_result

CPU = torch.device("cpu")
FEATURES, ROWS, TURNS = 2048, 4096, 3
SAMPLES, REFERENCE, FULL = 50_000, 10_000, 50_000


def solve() -> dict[str, Any]:
    import scipy
    import scipy.linalg

    from mpdit_core.metrics.scores import frechet_distance
    from mpdit_core.metrics.statistics import statistics_of

    draw = torch.Generator().manual_seed(0)
    a, b = (statistics_of(torch.relu(torch.randn(ROWS, FEATURES, generator=draw) + s)) for s in (0.0, 0.1))
    found: dict[str, Any] = {}
    works = {
        "symmetric": lambda: found.update(mine=frechet_distance(a, b)),
        "sqrtm": lambda: found.update(root=scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())),
    }
    symmetric, sqrtm = map(statistics.median, seconds_in_turns(works, TURNS, device=CPU).values())
    away = (a.mean - b.mean).numpy()
    theirs = away @ away + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(np.real(found["root"]))
    return {
        "scipy": scipy.__version__,
        "features": FEATURES,
        "rows": ROWS,
        "seconds_symmetric": symmetric,
        "seconds_sqrtm": sqrtm,
        "times_faster": sqrtm / symmetric,
        "target_times_faster": 5,
        "relative_difference": float(abs(found["mine"] - theirs) / abs(theirs)),
    }


def neighbours() -> dict[str, Any]:
    from mpdit_core.metrics.neighbours import precision_recall

    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(64, FEATURES, generator=draw) / 8  # features of images lie near few dimensions
    reference, samples = (torch.relu(torch.randn(n, 64, generator=draw) @ mix) for n in (REFERENCE, SAMPLES))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    precision, recall = precision_recall(reference, samples)
    return {
        "samples": SAMPLES,
        "reference": REFERENCE,
        "features": FEATURES,
        "seconds": time.perf_counter() - started,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "peak_gib_before": before / 2**20,
        "target_peak_gib": 4,
        "precision": precision,
        "recall": recall,
    }


def sums() -> dict[str, Any]:
    from mpdit_core.api import Features
    from mpdit_core.evaluation.progress import CHUNK_IMAGES, SavedProgress
    from mpdit_core.metrics.accumulator import FeatureAccumulator
    from mpdit_core.runtime.distributed import World

    draw = torch.Generator().manual_seed(0)
    pool, spatial, logits = (torch.randn(CHUNK_IMAGES, size, generator=draw) for size in (FEATURES, 2023, 1008))
    accumulator = FeatureAccumulator(FULL, keep=range(FULL))
    works = {"add": lambda: accumulator.add(Features(pool, spatial, logits))}
    adding = statistics.median(seconds_in_turns(works, TURNS, device=CPU)["add"])
    with tempfile.TemporaryDirectory() as folder:
        progress = SavedProgress(Path(folder), accumulator, block_size=64, world=World())
        progress.chunk = 1 + TURNS
        started = time.perf_counter()
        progress.save()
        saving = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "images_per_chunk": CHUNK_IMAGES,
        "seconds_per_chunk": adding,
        "seconds_saving": saving,
        "bytes_saved": size,
        "seconds_per_50000": adding * FULL / CHUNK_IMAGES,
    }


class Stopwatch:
    """Wall time spent in wrapped functions, by name, since the last `end`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.first = 0.0  # when the sampler was first called

    def end(self) -> dict[str, float]:
        """Seconds since the sampler was first called, by part; `rest` is the time outside all parts."""
        whole = time.perf_counter() - self.first
        found = {**self.seconds, "rest": whole - sum(self.seconds.values())}
        self.seconds.clear()
        self.first = 0.0
        return found

    def function(self, name: str, wrapped: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return wrapped(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed

    def sampler(self, wrapped: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            self.first = self.first or time.perf_counter()
            following = self.function("sampler", wrapped(*args, **kwargs).__next__)
            with suppress(StopIteration):
                while True:
                    yield following()

        return timed


def one_pass(images: int) -> dict[str, Any]:
    """The time of each part of an evaluation, for a quarter of `images` and for all of them.

    From both, the time outside sampler and extractor is divided into a part per image and a part per evaluation.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))  # a tiny model, and weights for Inception
    from inception_helpers import write_random_weights
    from sample_helpers import write_model

    from mpdit_core.evaluation import EvaluateOptions, collecting, evaluate, job
    from mpdit_core.sampling import Generator

    watch = Stopwatch()
    collecting.extract = watch.function("extractor", collecting.extract)
    Generator.batches = watch.sampler(Generator.batches)
    job.compute_metrics = watch.function("figures", job.compute_metrics)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MPDIT_CACHE"] = str(folder / "cache")
        write_model(folder / "model")
        pictures = np.random.RandomState(0).randint(0, 256, (64, 16, 16, 3)).astype(np.uint8)
        np.savez(folder / "reference.npz", arr_0=pictures)
        weights = write_random_weights(folder / "weights.pth")
        runs = []
        for count in (8, images // 4, images):  # the first measures the reference
            options = EvaluateOptions(
                what=str(folder / "model"), reference=str(folder / "reference.npz"), num_samples=count,
                weights=weights, num_steps=50, out=folder / "evals", force=True, device="cpu",
            )  # fmt: skip
            evaluate(options)
            runs.append(watch.end())
    _, few, many = runs
    per_image = (many["rest"] - few["rest"]) / (images - images // 4)
    return {
        "model": "tiny, 16 px, 50 steps",
        "images": images,
        **{f"seconds_{part}": seconds for part, seconds in many.items()},
        "share_of_pass_outside": many["rest"] / (many["rest"] + many["sampler"] + many["extractor"]),
        "target_share_outside": 0.05,
        "rest_seconds_per_image": per_image,
        "rest_seconds_per_evaluation": many["rest"] - per_image * images,
    }


def share_of_full(one: dict[str, Any], solved: dict[str, Any], near: dict[str, Any]) -> float:
    """The share of time outside sampler and extractor for 50,000 images, computed from the parts.

    It is the pass per image, two solves, and precision and recall against 10,000 images.
    """
    inside = (one["seconds_sampler"] + one["seconds_extractor"]) / one["images"] * FULL
    rest = one["rest_seconds_per_image"] * FULL + one["rest_seconds_per_evaluation"]
    outside = rest + 2 * solved["seconds_symmetric"] + near["seconds"]
    return outside / (inside + outside)


def newest(part: str) -> dict[str, Any]:
    found = sorted(RESULTS.glob(f"*-{name_of(part)}.json"))
    if not found:
        raise SystemExit(f"no result of {part} yet: python benchmarks/evaluate.py {part}")
    return json.loads(found[-1].read_text(encoding="utf-8"))


def name_of(part: str) -> str:
    return "evaluate" if part == "solve" else f"evaluate-{part}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"solve": solve, "neighbours": neighbours, "sums": sums, "pass": one_pass}
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure; default: all")
    parser.add_argument("--images", type=int, default=512, help="number of images in the pass")
    arguments = parser.parse_args()
    for part in arguments.parts or parts:
        data = in_new_process(parts[part], *([arguments.images] if part == "pass" else []))
        if part == "pass":
            data["share_of_50000_outside"] = share_of_full(data, newest("solve"), newest("neighbours"))
        print(write_result(name_of(part), data), data)


if __name__ == "__main__":
    main()
