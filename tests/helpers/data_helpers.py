"""Small image folders and a small AutoencoderKL for the tests of data and encoding, and functions to encode them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpdit_core.encoding import EncodeOptions, EncodeResult, encode_latents
from mpdit_core.errors import UserError
from mpdit_core.reporting import Reporter, silent

SMALL = ["--autoencoder", "pixels", "--resolution", "8", "--shard-size", "4", "--batch-size", "2", "--device", "cpu"]
"""The defaults of `encode` below, as flags of `mpdit encode-latents`."""


def photo(index: int, size: tuple[int, int] = (20, 14)) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def image_folder(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 5) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(each):
            photo(c * each + n).save(root / name / f"{n}.png")
    return root


def encode(source: object, out: Path, *, report: Reporter = silent, **more: Any) -> EncodeResult:
    """Encodes with `pixels` at 8 × 8, four images to a shard, unless `more` says otherwise."""
    small = {"autoencoder": "pixels", "resolution": 8, "shard_size": 4, "batch_size": 2, "device": "cpu"}
    return encode_latents(EncodeOptions(**({"source": str(source), "out": out} | small | more)), report=report)


@contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    """Requires a `UserError` with `code` whose `what` contains all `words` (values of the test, not prose)."""
    with pytest.raises(UserError) as caught:
        yield
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in caught.value.what, caught.value


def shard_hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("shard-*.safetensors"))}


def hub_data_set(images: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A local data set in the Hub's format, made of a folder of class folders; returns its name as a source."""
    import datasets
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    paths = sorted(images.glob("*/*.png"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    table = {"image": [str(p) for p in paths], "label": [p.parent.name for p in paths]}
    (folder / "hub").mkdir()
    data = datasets.Dataset.from_dict(table, features=features)
    data.to_parquet(folder / "hub/train-00000-of-00001.parquet")
    return f"hf:{folder}/hub"


def save_autoencoder(folder: Path, seed: int = 0) -> Path:
    """An AutoencoderKL like Stable Diffusion's (factor 8, 4 channels), with small widths and random weights."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    form: dict[str, Any] = dict(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    AutoencoderKL(**form).save_pretrained(folder)
    return folder
