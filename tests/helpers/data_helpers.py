"""Small image folders and a small AutoencoderKL for the tests of the data room."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from mpdit_cli.app import main

SMALL = ["--autoencoder", "pixels", "--resolution", "8", "--shard-size", "4", "--batch-size", "2", "--device", "cpu"]


def photo(index: int, size: tuple[int, int] = (20, 14)) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def image_folder(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 5) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(each):
            photo(c * each + n).save(root / name / f"{n}.png")
    return root


def encode(source: object, out: Path, *more: str) -> int:
    return main(["encode-latents", str(source), "--out", str(out), *SMALL, *more])


def shard_hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("shard-*.safetensors"))}


def save_autoencoder(folder: Path, seed: int = 0) -> Path:
    """A randomly initialised AutoencoderKL of the Stable Diffusion autoencoder's form (factor 8, 4 channels), thin."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(folder)
    return folder
