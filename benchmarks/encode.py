"""Speed of `encode-latents` against its slowest part alone (decoding, or the encoder), on generated photos.

python benchmarks/encode.py                         # pixels: against cores × decode-and-crop
python benchmarks/encode.py --autoencoder kl        # Stable Diffusion's form, random weights: against the encoder
python benchmarks/encode.py --precision             # the same in bfloat16 against eager float32, and decoding
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import seconds_in_turns, write_result
from torch import Tensor

from mpdit_core.config import ComputeType
from mpdit_core.data.autoencoders import load_autoencoder, read_stored
from mpdit_core.data.images import open_image, prepare
from mpdit_core.encoding import EncodeOptions, encode_latents
from mpdit_core.runtime.concurrency import usable_cores
from mpdit_core.runtime.device import select_device
from mpdit_core.size import Size

TURNS = 3


def make_photos(root: Path, count: int) -> None:
    """JPEGs of about ImageNet's mean size (500 × 375, about 100 kB): smooth shapes with noise."""
    for n in range(count):
        random = np.random.default_rng(n)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), 3)
        noisy = np.asarray(coarse).astype(np.int16) + random.integers(-24, 25, (375, 500, 3))
        folder = root / f"class-{n % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{n}.jpg", quality=92)


def save_kl(folder: Path) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    form: dict[str, Any] = dict(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, sample_size=256,
    )  # fmt: skip
    AutoencoderKL(**form).save_pretrained(folder)
    return folder


def bare_decoding(root: Path, resolution: Size) -> float:
    """Images/s of one thread that only decodes and crops."""
    paths = sorted(root.rglob("*.jpg"))[:300]
    started = time.perf_counter()
    for path in paths:
        prepare(open_image(path.read_bytes()), resolution)
    return len(paths) / (time.perf_counter() - started)


def bare_encoding(name: str, device: torch.device, batch_size: int, resolution: Size) -> dict[str, float]:
    """Images/s of the encoder alone, with the same batch: in one call; on a CPU also with one image per thread."""
    autoencoder = load_autoencoder(name, device=device)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *resolution, 3), dtype=np.uint8)
    repeats = 20 if device.type == "cuda" else 2

    def rate(encode_once: Callable[[], Tensor]) -> float:
        encode_once()
        started = time.perf_counter()
        for _ in range(repeats):
            encode_once()
        return repeats * batch_size / (time.perf_counter() - started)

    def encode(pictures: np.ndarray) -> Tensor:
        return autoencoder.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2)).cpu()

    rates = {"one call per batch": rate(lambda: encode(images))}
    if device.type == "cpu":
        with ThreadPoolExecutor(usable_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            rates["one image per thread"] = rate(lambda: list(pool.map(encode, np.split(images, batch_size)))[-1])
    return rates


def precision_rates(
    folder: Path,
    device: torch.device,
    batch_size: int,
    resolution: Size,
    *,
    types: Sequence[ComputeType] = ("float32", "bfloat16"),
) -> dict[str, dict[str, float]]:
    """Images/s of encoder and decoder in each type: the medians of some turns."""
    autoencoder = load_autoencoder(str(folder), device=device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 3, *resolution), dtype=torch.uint8, generator=generator).to(device)
    latents = read_stored(autoencoder.encode(images), autoencoder.spec.stores)[0]

    def run(compute: Callable[[], Tensor], precision: ComputeType) -> None:
        autoencoder.precision = autoencoder.decode_precision = precision
        compute()

    found: dict[str, dict[str, float]] = {}
    works = {"encode": lambda: autoencoder.encode(images), "decode": lambda: autoencoder.decode(latents)}
    for name, compute in works.items():
        turns = TURNS if device.type == "cpu" else 20  # one call takes some milliseconds on a GPU
        seconds = seconds_in_turns({kind: partial(run, compute, kind) for kind in types}, turns, device=device)
        found[name] = {kind: batch_size / statistics.median(taken) for kind, taken in seconds.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", choices=["pixels", "kl"], default="pixels")
    parser.add_argument(
        "--count",
        type=int,
        help="number of photos (default: 2000; with kl 96, because an encoder takes a second per photo on a CPU)",
    )
    parser.add_argument("--precision", action="store_true", help="measure only the ratios of bfloat16 to float32")
    parser.add_argument("--batch-size", type=int, help="default: 16; with --precision 4")
    parser.add_argument("--resolution", type=Size.parse, default="256")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device, root = select_device(arguments.device), Path(tempfile.mkdtemp())
    batch_size = arguments.batch_size or (4 if arguments.precision else 16)
    count = arguments.count or (2000 if arguments.autoencoder == "pixels" else 96)
    try:
        if arguments.precision:
            found = precision_rates(save_kl(root / "vae"), device, batch_size, arguments.resolution)
            for rates in found.values():
                rates["ratio"] = rates["bfloat16"] / rates["float32"]
            print(found)
            print(write_result("encode-precision", {"device": str(device), "batch_size": batch_size, **found}))
            return
        make_photos(root / "photos", count)
        name = "pixels" if arguments.autoencoder == "pixels" else str(save_kl(root / "vae"))
        if name == "pixels":
            bare = {"cores × decoding": bare_decoding(root / "photos", arguments.resolution) * usable_cores()}
        else:
            bare = bare_encoding(name, device, batch_size, arguments.resolution)
        options = EncodeOptions(
            source=str(root / "photos"), autoencoder=name, out=root / "out", batch_size=batch_size,
            resolution=arguments.resolution, flip=False, precision="float32", device=arguments.device,
        )  # fmt: skip
        rate = encode_latents(options).images_per_second
        assert rate is not None
        data = {
            "autoencoder": arguments.autoencoder, "device": str(device), "count": count,
            "batch_size": batch_size, "bare_images_per_second": bare, "images_per_second": rate,
            "ratio": rate / max(bare.values()),
        }  # fmt: skip
        print(data)
        print(write_result(f"encode-{arguments.autoencoder}", data))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
