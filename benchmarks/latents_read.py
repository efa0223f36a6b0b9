"""Reading latents: shards of mpdit against a folder of one .npy an image, same content, in one run.

python benchmarks/latents_read.py --count 50000
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from report import write_result

from mpdit_core.data.autoencoder import PixelAutoencoder
from mpdit_core.data.encoding_folder import EncodingFolder, make_manifest
from mpdit_core.data.latents import EpochOrder, LatentFolder
from mpdit_core.data.manifest import EncodingPlan, SourceSpec, measured_statistics, normalisation_of
from mpdit_core.data.shards import ShardContent, write_shard

SHAPE = (8, 32, 32)  # of Stable Diffusion's moments at 256 px
BATCH = 256


def make(root: Path, count: int) -> None:
    """Writes the same random moments as shards and as single files."""
    spec = PixelAutoencoder(gray=False, device=torch.device("cpu")).spec
    spec = spec.model_copy(update={"channels": 4, "factor": 8, "id": "random"})
    plan = EncodingPlan(
        source=SourceSpec(given="random", name="random", fingerprint="", items=count), resolution=256,
        autoencoder=spec, flip=False, batch_size=32, shard_size=4096, class_names=tuple(map(str, range(1000))),
    )  # fmt: skip
    folder = EncodingFolder(root / "shards")
    folder.begin(plan)
    (root / "files").mkdir()
    for number in range(plan.num_shards):
        start, stop = plan.shard_range(number)
        moments = np.random.default_rng(number).standard_normal((stop - start, *SHAPE), np.float32).astype("<f2")
        for index in range(start, stop):
            np.save(root / "files" / f"{index:07d}.npy", moments[index - start])
        labels = np.arange(start, stop) % 1000
        folder.add(number, write_shard(folder.path, plan, ShardContent(number, moments, None, labels, [])))
    shards = folder.shards(plan)
    mean, std = measured_statistics(plan, [shards[n] for n in range(plan.num_shards)])
    norm = normalisation_of("measured", mean, std)
    folder.finish(make_manifest(plan, shards, mean=mean, std=std, norm=norm))


def forget(root: Path) -> None:
    """Drops the files' pages from the system's cache, as far as an ordinary user can."""
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def from_files(folder: Path, batches: int) -> tuple[float, float]:
    """(seconds from listing to the first batch, samples/s after it) with one file an image."""
    started = time.perf_counter()
    names = sorted(folder.iterdir())
    order = np.random.default_rng(0).permutation(len(names))
    seconds = 0.0
    for batch in range(batches + 1):
        chosen = order[batch * BATCH : (batch + 1) * BATCH]
        torch.from_numpy(np.stack([np.load(names[n]) for n in chosen])).float()
        if batch == 0:
            seconds, started = time.perf_counter() - started, time.perf_counter()
    return seconds, batches * BATCH / (time.perf_counter() - started)


def from_shards(path: Path, batches: int) -> tuple[float, float]:
    """The same from shards, through what training uses."""
    started = time.perf_counter()
    folder = LatentFolder(path)
    order = EpochOrder(len(folder), seed=0)
    seconds = 0.0
    for batch in range(batches + 1):
        folder.batch(order.indices(batch * BATCH, (batch + 1) * BATCH))
        if batch == 0:
            seconds, started = time.perf_counter() - started, time.perf_counter()
    return seconds, batches * BATCH / (time.perf_counter() - started)


def anonymous_mib() -> float:
    """Memory of this process that is not a mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--dir", help="where to put the data; the system's temporary folder")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.dir))
    try:
        make(root, arguments.count)
        batches = max(1, arguments.count // BATCH - 1)
        forget(root)
        files_first, files_rate = from_files(root / "files", batches)
        files_warm = from_files(root / "files", batches)[1]
        before = anonymous_mib()
        shards_first, shards_rate = from_shards(root / "shards", batches)
        shards_warm = from_shards(root / "shards", batches)[1]
        data = {
            "count": arguments.count,
            "first_batch_seconds": {"files": files_first, "shards": shards_first, "ratio": files_first / shards_first},
            "cold_samples_per_second": {"files": files_rate, "shards": shards_rate, "ratio": shards_rate / files_rate},
            "warm_samples_per_second": {"files": files_warm, "shards": shards_warm, "ratio": shards_warm / files_warm},
            "anonymous_memory_mib": {"before": before, "after_two_epochs": anonymous_mib()},
            "peak_mib_with_mapped_files": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(data)
        print(write_result("latents-read", data))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
