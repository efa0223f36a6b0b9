"""Speed of reading latents: mpdit's shards against one .npy file per image with the same content.

One process reads both, in turns, after everything is imported and has run once, so imports do not count. Before a cold
turn the system's caches are emptied.

python benchmarks/latents_read.py --count 50000
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from report import write_result

from mpdit_core.data.epoch_order import EpochOrder
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import AutoencoderSpec, EncodingPlan, SourceSpec
from mpdit_core.data.shards import ShardContent, write_shard
from mpdit_core.encoding.folder import EncodingFolder
from mpdit_core.size import Size

SETTLE = 1.0  # seconds to wait: the system still frees the cache of 100,000 files after the call returns
AUTOENCODER = AutoencoderSpec(id="random", factor=8, channels=4)  # as Stable Diffusion's
RESOLUTION = Size.square(256)
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
    path: Path,
    count: int,
    *,
    autoencoder: AutoencoderSpec = AUTOENCODER,
    resolution: Size = RESOLUTION,
    classes: int = 1000,
) -> Iterator[tuple[int, np.ndarray]]:
    """Writes a folder of `count` random moments or pixels, and yields each shard's first index and values."""
    plan = EncodingPlan(
        source=SourceSpec(given="random", fingerprint="", items=count), resolution=resolution, autoencoder=autoencoder,
        flip=False, batch_size=32, shard_size=4096, class_names=tuple(map(str, range(classes))),
    )  # fmt: skip
    h, w = resolution // autoencoder.factor
    folder = EncodingFolder(path)
    with folder.locked():
        folder.begin(plan, {})
        for number in range(plan.num_shards):
            start, stop = plan.shard_range(number)
            random, n = np.random.default_rng(number), stop - start
            if autoencoder.stores == "uint8":
                name, values = "pixels", random.integers(0, 256, (n, autoencoder.channels, h, w), dtype=np.uint8)
            else:
                values = random.standard_normal((n, 2 * autoencoder.channels, h, w), np.float32).astype("<f2")
                name = "moments"
            content = ShardContent(number, {name: values}, np.arange(start, stop) % classes, [])
            folder.add(number, write_shard(folder.path, plan, content))
            yield start, values
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


def from_files(folder: Path) -> Iterator[None]:
    """Reads one batch per step, with two files per image: features and label."""
    features, labels = (sorted(os.listdir(folder / name)) for name in ("features", "labels"))  # noqa: PTH208 - as there
    names = [(f"{folder}/features/{a}", f"{folder}/labels/{b}") for a, b in zip(features, labels, strict=True)]
    order = np.random.default_rng(0).permutation(len(names))
    for start in itertools.count(0, BATCH):
        chosen = order[start : start + BATCH]
        loaded = [[torch.from_numpy(np.load(path)) for path in names[n]] for n in chosen]
        torch.stack([moments for moments, _ in loaded]).float()
        torch.stack([label for _, label in loaded])
        yield


def from_shards(path: Path) -> Iterator[None]:
    """The same from shards, with the classes that training uses."""
    folder = LatentFolder(path)
    order = EpochOrder(len(folder), seed=0)
    for start in itertools.count(0, BATCH):
        folder.batch(order.indices(start, start + BATCH))
        yield


def measure(read: Callable[[Path], Iterator[None]], path: Path, batches: int) -> tuple[float, float]:
    """(seconds from opening to the first batch, samples/s of `batches` more batches)"""
    started = time.perf_counter()
    reading = read(path)
    next(reading)
    first = time.perf_counter()
    for _ in range(batches):
        next(reading)
    return first - started, batches * BATCH / (time.perf_counter() - first)


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
        methods = {
            "files": partial(measure, from_files, root / "files"),
            "shards": partial(measure, from_shards, root / "shards"),
        }
        cold = {name: [] for name in methods}
        warm = {name: [] for name in methods}
        before, how = 0.0, ""
        for method in methods.values():
            method(1)
        for _ in range(arguments.repeats):
            for name, method in methods.items():
                how = forget(root)
                cold[name].append(method(1)[0])
        for method in methods.values():
            method(batches)  # into the cache
        for _ in range(arguments.repeats):
            for name, method in methods.items():
                warm[name].append(method(batches)[1])
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
