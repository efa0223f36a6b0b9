"""`verify`: bad shards are found, named, set aside and rebuilt; swapped images are noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from data_helpers import encode, image_folder, photo, refused, shard_hashes
from PIL import Image

from mpdit_core.data.latents import LatentFolder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def test_verify_rebuilds_the_bad_shard_only(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    encode(images, out)
    whole = shard_hashes(out)
    data = bytearray((out / "shard-00002.safetensors").read_bytes())
    data[-5] ^= 1
    (out / "shard-00002.safetensors").write_bytes(data)
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    with refused("damaged-shards", "shard-00002.safetensors", "SHA-256", "1 of 4"):
        encode(images, out, verify=True)
    with refused("no-such-file", "shard-00002"):
        LatentFolder(out)
    assert encode(images, out).encoded_now == 4
    assert shard_hashes(out) == whole
    rebuilt = [p.name for p in out.glob("shard-*") if p.stat().st_mtime_ns != times[p.name]]
    assert rebuilt == ["shard-00002.safetensors"]
    assert encode(images, out, verify=True).encoded_now == 0


def test_verify_encodes_again(images: Path, tmp_path: Path):
    """A picture that was swapped, with name, size and time kept: only its latents tell."""
    for n in range(5):
        Image.new("RGB", (8, 8), (n, n, n)).save(images / f"ant/{n}.png")
    for n in range(10):
        photo(n, (8, 8)).save(images / f"bee/{n}.bmp")
    out = tmp_path / "out"
    encode(images, out)
    for n in range(10):
        status = (images / f"bee/{n}.bmp").stat()
        photo(50 + n, (8, 8)).save(images / f"bee/{n}.bmp")
        os.utime(images / f"bee/{n}.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    with refused("damaged-shards", "standard deviations", "bee/"):
        encode(images, out, verify=True)
