"""Speed of reading latents: mpdit's shards against one .npy file per image with the same content.

One process reads both, in turns, after everything is imported and has run once, so imports do not count. Before a cold
turn the system's caches are emptied.

python benchmarks/latents_read.py --count 50000
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from report import write_result

from mpdit_core.data.latents import EpochOrder, LatentFolder
from mpdit_core.data.manifest import AutoencoderSpec, EncodingPlan, SourceSpec
from mpdit_core.data.shards import ShardContent, write_shard
from mpdit_core.encoding.folder import EncodingFolder
from mpdit_core.size import Size

SETTLE = 1.0  # seconds to wait: the system still frees the cache of 100,000 files after the call returns
SHAPE = (8, 32, 32)  # of Stable Diffusion's moments at 256 px
BATCH = 256


def make(root: Path, count: int) -> None:
    """Writes the same random moments as shards and as single files."""
    for name in ("features", "labels"):
        (root / "files" / name).mkdir(parents=True)
    for start, moments in write_shards(root / "shards", count):
        for index, values in enumerate(moments, start):
            np.save(root / "files/features" / f"{index}.npy", values)
            np.save(root / "files/labels" / f"{index}.npy", np.array([index % 1000]))


def write_shards(
    path: Path, count: int, *, shape: tuple[int, int, int] = SHAPE, factor: int = 8, classes: int = 1000
) -> Iterator[tuple[int, np.ndarray]]:
    """Writes a folder of `count` random moments, and yields each shard's first index and moments."""
    spec = AutoencoderSpec(id="random", factor=factor, channels=shape[0] // 2)
    plan = EncodingPlan(
        source=SourceSpec(given="random", fingerprint="", items=count),
        resolution=Size(factor * shape[1], factor * shape[2]), autoencoder=spec, flip=False,
        batch_size=32, shard_size=4096, class_names=tuple(map(str, range(classes))),
    )  # fmt: skip
    folder = EncodingFolder(path)
    with folder.held():
        folder.begin(plan, {})
        for number in range(plan.num_shards):
            start, stop = plan.shard_range(number)
            moments = np.random.default_rng(number).standard_normal((stop - start, *shape), np.float32).astype("<f2")
            content = ShardContent(number, {"moments": moments}, np.arange(start, stop) % classes, [])
            folder.add(number, write_shard(folder.path, plan, content))
            yield start, moments
        folder.finish(plan, normalisation="measured")


def forget(root: Path) -> str:
    """Empties the system's caches of files and folders, and returns how. Only root can empty the cache of folders."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        time.sleep(SETTLE)
        return "drop_caches"
    except OSError:
        for path in root.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return "posix_fadvise (folder listings stay cached)"


def from_files(folder: Path, batches: int) -> tuple[float, float]:
    """(seconds from listing to the first batch, samples/s after it) with two files per image: features and label."""
    started = time.perf_counter()
    features, labels = (sorted(os.listdir(folder / name)) for name in ("features", "labels"))  # noqa: PTH208 - as there
    names = [(f"{folder}/features/{a}", f"{folder}/labels/{b}") for a, b in zip(features, labels, strict=True)]
    order = np.random.default_rng(0).permutation(len(names))
    seconds = 0.0
    for batch in range(batches + 1):
        chosen = order[batch * BATCH : (batch + 1) * BATCH]
        loaded = [[torch.from_numpy(np.load(path)) for path in names[n]] for n in chosen]
        torch.stack([moments for moments, _ in loaded]).float()
        torch.stack([label for _, label in loaded])
        if batch == 0:
            seconds, started = time.perf_counter() - started, time.perf_counter()
    return seconds, batches * BATCH / (time.perf_counter() - started)


def from_shards(path: Path, batches: int) -> tuple[float, float]:
    """The same from shards, with the classes that training uses."""
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
    """Memory of this process in MiB, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--dir", help="folder for the data; default: the system's temporary folder")
    parser.add_argument("--batches", type=int, default=60, help="number of batches of 256 images in a warm turn")
    parser.add_argument("--repeats", type=int, default=5, help="number of turns; medians are reported")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.dir))
    try:
        make(root, arguments.count)
        batches = max(1, min(arguments.count // BATCH - 1, arguments.batches))
        methods = {"files": (from_files, root / "files"), "shards": (from_shards, root / "shards")}
        cold = {name: [] for name in methods}
        warm = {name: [] for name in methods}
        before, how = 0.0, ""
        for read, path in methods.values():
            read(path, 1)
        for _ in range(arguments.repeats):
            for name, (read, path) in methods.items():
                how = forget(root)
                cold[name].append(read(path, 1)[0])
        for read, path in methods.values():
            read(path, batches)  # into the cache
        for _ in range(arguments.repeats):
            for name, (read, path) in methods.items():
                warm[name].append(read(path, batches)[1])
            before = before or anonymous_mib()
        first = {name: float(np.median(values)) for name, values in cold.items()}
        rate = {name: float(np.median(values)) for name, values in warm.items()}
        data = {
            "count": arguments.count, "batch_size": BATCH, "cache_emptied_by": how,
            "first_batch_seconds": first | {"ratio": first["files"] / first["shards"], "all": cold},
            "warm_samples_per_second": rate | {"ratio": rate["shards"] / rate["files"], "all": warm},
            "anonymous_memory_mib": {"before": before, "after_all": anonymous_mib()},
            "peak_mib_with_mapped_files": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }  # fmt: skip
        print(data)
        print(write_result("latents-read", data))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
