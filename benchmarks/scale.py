"""Time and memory of commands with a million files or lines, against a tenth of them: `python benchmarks/scale.py`.

    files      listing images in 1,000 class folders, and their fingerprint: `encode-latents`
    latents    opening a folder of latents, the order of an epoch and the first batch: `train`
    metrics    reading metrics.jsonl: dropping lines past a checkpoint (resuming `train`), `ls`, and the page of
               `report`

The images are empty files, because their content is not read; the latents have 4 × 4 pixels. All files are in a
temporary folder, which is removed. A cost is linear if ten times as many take at most `LINEAR` times as long. Memory is
the increase of the process's peak, so measurements in one process must be in order of their memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from latents_read import write_shards
from report import in_new_process, write_result

from mpdit_core.config import RunConfig
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.data.sources import classes_and_fingerprint, count_items, open_source
from mpdit_core.models.run_folder import METRICS, RunFolder
from mpdit_core.presets import load_preset
from mpdit_core.run_report import ReportOptions, write_report
from mpdit_core.runtime.device import peak_memory
from mpdit_core.settings import merge, validate
from mpdit_core.size import Size
from mpdit_core.training.batches import BatchSource
from mpdit_core.workspace import ListOptions, list_workspace

CLASSES, SIDE = 1000, 4
LINEAR = 12.0


class Cost(NamedTuple):
    seconds: float
    mebibytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["files", "latents", "metrics"])
    arguments = parser.parse_args()
    measured = {"files": list_files, "latents": open_latents, "metrics": read_metrics}
    rows = []
    for name, measure in measured.items():
        if arguments.only in (None, name):
            rows += in_new_process(compare, measure, arguments.count)
    print(write_result("scale", {"count": arguments.count, "rows": rows}))


def compare(measure: Callable[[Path, int], dict[str, Cost]], count: int) -> list[dict[str, object]]:
    """The costs for a tenth of `count` and for all of it."""
    found = []
    for n in (CLASSES, count // 10, count):  # the first imports what is needed
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), n))
    rows = []
    _, tenth, whole = found
    for name, (seconds, mebibytes) in whole.items():
        before = tenth[name].seconds
        ratio = seconds / before
        print(
            f"{name:>28}: {before:7.2f} s, {seconds:7.2f} s for ten times as many, {ratio:.1f} ×, {mebibytes:.0f} MiB",
            flush=True,
        )
        rows.append({
            "what": name, "seconds_tenth": before, "seconds": seconds, "ratio": ratio, "linear": ratio <= LINEAR,
            "mebibytes": mebibytes,
        })  # fmt: skip
    return rows


def cost_of(work: Callable[[], object]) -> Cost:
    started, before = time.perf_counter(), peak_memory(torch.device("cpu"))
    work()
    return Cost(time.perf_counter() - started, (peak_memory(torch.device("cpu")) - before) / 2**20)


def list_files(root: Path, count: int) -> dict[str, Cost]:
    for c in range(CLASSES):
        folder = root / f"n{c:08d}"
        folder.mkdir()
        for n in range(count // CLASSES):
            (folder / f"{n}.JPEG").touch()
    source = open_source(str(root))
    return {
        "listing files": cost_of(lambda: count_items(source)),
        "fingerprint": cost_of(lambda: classes_and_fingerprint(source)),
    }


def make_latents(root: Path, count: int) -> Path:
    pixels = AutoencoderSpec(id="pixels-gray", factor=1, channels=1, stores="uint8", flip_equivariant=True)
    for _ in write_shards(root / "latents", count, autoencoder=pixels, resolution=Size.square(SIDE), classes=CLASSES):
        pass
    return root / "latents"


def config() -> RunConfig:
    shape = {"input_size": SIDE, "channels": 1, "num_classes": CLASSES, "stages": [[4, 1], [2, 1]]}
    train = {"batch_size": 256}
    return validate(RunConfig, merge(load_preset("tiny").model_dump(), {"model": shape, "train": train}))


def open_latents(root: Path, count: int) -> dict[str, Cost]:
    path = make_latents(root, count)
    opening = cost_of(lambda: LatentFolder(path))
    folder = LatentFolder(path)
    return {
        "opening latents": opening,
        "order and first batch": cost_of(lambda: BatchSource(folder, config()).batch(0)),
    }


def read_metrics(root: Path, count: int) -> dict[str, Cost]:
    run = RunFolder(root / "run")
    run.write(config(), LatentFolder(make_latents(root, 4096)).spec)
    with open(run.path / METRICS, "w", encoding="utf-8") as file:
        for step in range(1, count + 1):
            line = {
                "step": step, "loss": 1 + 1 / step, "grad_norm": 0.5, "learning_rate": 2e-4, "images_seen": 256 * step,
                "images_per_second": 100.0,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    return {
        "resuming: lines past a step": cost_of(lambda: run.truncate_metrics(count - 10)),
        "ls": cost_of(lambda: list_workspace(ListOptions(folder=root))),
        "report": cost_of(lambda: write_report(ReportOptions(run=run.path))),
    }


if __name__ == "__main__":
    main()
