"""What a million of something costs at the start of a command, against a tenth of it: `python benchmarks/scale.py`.

    files      listing images in 1,000 class folders, and their fingerprint: `encode-latents`
    latents    opening a folder of latents, the order of an epoch and the first batch: `train`
    metrics    reading metrics.jsonl and writing the page: `report`; dropping lines past a checkpoint: resuming `train`

The images are empty files, as nothing of them is read; the latents have 4 × 4 pixels. All is made in a temporary folder
and removed. A cost is linear where ten times as many take at most `LINEAR` times as long.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import write_result

from mpdit_core.config import RunConfig
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import AutoencoderSpec, EncodingPlan, SourceSpec
from mpdit_core.data.shards import ShardContent, write_shard
from mpdit_core.data.sources import classes_of, count_items, open_source
from mpdit_core.encoding.folder import EncodingFolder
from mpdit_core.models.run_folder import METRICS, RunFolder
from mpdit_core.presets import load_preset
from mpdit_core.run_report import ReportOptions, write_report
from mpdit_core.settings import merge, validate
from mpdit_core.size import Size
from mpdit_core.training.batches import BatchSource

CLASSES, SIDE = 1000, 4
LINEAR = 12.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["files", "latents", "metrics"])
    arguments = parser.parse_args()
    measured = {"files": list_files, "latents": open_latents, "metrics": read_metrics}
    rows = []
    for name, measure in measured.items():
        if arguments.only in (None, name):
            rows += compare(measure, arguments.count)
    print(write_result("scale", {"count": arguments.count, "rows": rows}))


def compare(measure: Callable[[Path, int], dict[str, float]], count: int) -> list[dict[str, object]]:
    """Seconds of each thing measured, for a tenth of `count` and for all of it."""
    found = []
    for n in (CLASSES, count // 10, count):  # the first imports what is needed
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), n))
    rows = []
    _, tenth, whole = found
    for name, seconds in whole.items():
        ratio = seconds / tenth[name]
        print(f"{name:>32}: {tenth[name]:7.2f} s, {seconds:7.2f} s for ten times as many, {ratio:.1f} ×", flush=True)
        rows.append(
            {
                "what": name,
                "seconds_tenth": tenth[name],
                "seconds": seconds,
                "ratio": ratio,
                "linear": ratio <= LINEAR,
            }
        )
    return rows


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def list_files(root: Path, count: int) -> dict[str, float]:
    for c in range(CLASSES):
        folder = root / f"n{c:08d}"
        folder.mkdir()
        for n in range(count // CLASSES):
            (folder / f"{n}.JPEG").touch()
    source = open_source(str(root))
    return {"listing files": timed(lambda: count_items(source)), "fingerprint": timed(lambda: classes_of(source))}


def make_latents(root: Path, count: int) -> Path:
    plan = EncodingPlan(
        source=SourceSpec(given="random", name="random", fingerprint="", items=count), resolution=Size.square(SIDE),
        autoencoder=AutoencoderSpec(id="pixels-gray", factor=1, channels=1, stores="uint8", flip_equivariant=True),
        flip=False, batch_size=32, shard_size=4096, class_names=tuple(map(str, range(CLASSES))),
    )  # fmt: skip
    folder = EncodingFolder(root / "latents")
    with folder.held():
        folder.prepare(plan)
        for number in range(plan.num_shards):
            start, stop = plan.shard_range(number)
            pixels = np.random.default_rng(number).integers(0, 256, (stop - start, 1, SIDE, SIDE), dtype=np.uint8)
            content = ShardContent(number, {"pixels": pixels}, np.arange(start, stop) % CLASSES, [])
            folder.add(number, write_shard(folder.path, plan, content))
        folder.finish(plan, normalisation="measured")
    return folder.path


def config() -> RunConfig:
    shape = {"input_size": SIDE, "channels": 1, "num_classes": CLASSES, "stages": [[4, 1], [2, 1]]}
    train = {"batch_size": 256}
    return validate(RunConfig, merge(load_preset("tiny").model_dump(), {"model": shape, "train": train}))


def open_latents(root: Path, count: int) -> dict[str, float]:
    path = make_latents(root, count)
    started = time.perf_counter()
    folder = LatentFolder(path)
    opened = time.perf_counter()
    batches = BatchSource(folder, config())
    batches.batch(0)
    return {"opening latents": opened - started, "order and first batch": time.perf_counter() - opened}


def read_metrics(root: Path, count: int) -> dict[str, float]:
    run = RunFolder(root / "run")
    run.write(config(), LatentFolder(make_latents(root, 4096)).spec)
    with open(run.path / METRICS, "w", encoding="utf-8") as file:
        for step in range(1, count + 1):
            line = {
                "step": step,
                "loss": 1 + 1 / step,
                "grad_norm": 0.5,
                "learning_rate": 2e-4,
                "images_seen": 256 * step,
                "images_per_second": 100.0,
            }
            file.write(json.dumps(line) + "\n")
    return {
        "report": timed(lambda: write_report(ReportOptions(run=run.path))),
        "resuming: lines past a step": timed(lambda: run.truncate_metrics(count - 10)),
    }


if __name__ == "__main__":
    main()
