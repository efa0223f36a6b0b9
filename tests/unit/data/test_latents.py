"""Reading a folder of latents: batches, mirror images, the order of images, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import encode, image_folder, refused, save_autoencoder

from mpdit_core.data.epoch_order import EpochOrder
from mpdit_core.data.latents import LatentBatch, LatentFolder, draw_latents
from mpdit_core.data.manifest import Normalisation, find_latents
from mpdit_core.data.standardising import unstandardise
from mpdit_core.runtime.files import read_json, write_json
from mpdit_core.size import Size


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return image_folder(tmp_path_factory.mktemp("latents") / "images")


@pytest.fixture(scope="module")
def pixels(images: Path) -> LatentFolder:
    return LatentFolder(encode(images, images.parent / "pixels").latents)


def test_batches_of_pixels(pixels: LatentFolder):
    mean, std, labels, _ = pixels.batch([14, 0, 7, 0])
    assert (mean.shape, mean.dtype, std) == ((4, 3, 8, 8), torch.float32, None)
    assert labels.tolist() == [2, 0, 1, 0]
    assert torch.equal(mean[1], mean[3])
    stored = torch.from_numpy(pixels.shard(0)["pixels"][0].copy())
    assert torch.equal(mean[1], stored.float() / 127.5 - 1)
    mirrored = pixels.batch([14, 0], flip=[True, False]).mean
    assert torch.equal(mirrored[0], mean[0].flip(-1))
    assert torch.equal(mirrored[1], mean[1])
    with pytest.raises(IndexError):
        pixels.batch([15])


def test_draws_of_pixels_are_the_pixels(pixels: LatentFolder):
    batch = pixels.batch(range(15))
    norm = pixels.spec.normalisation
    latents = draw_latents(batch, torch.randn(15, 3, 8, 8), norm)
    assert torch.allclose(unstandardise(latents, norm), batch.mean, atol=1e-6)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (latents.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_a_draw_is_mean_plus_std_times_noise():
    norm = Normalisation(name="measured", mean=(1.0,), std=(2.0,))
    mean, std, noise = (torch.full((1, 1, 2, 2), value) for value in (5.0, 0.5, 3.0))
    batch = LatentBatch(mean, std, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(draw_latents(batch, noise, norm), torch.full((1, 1, 2, 2), (5 + 0.5 * 3 - 1) / 2))


def test_draws_from_a_posterior_have_the_measured_statistics(images: Path, tmp_path: Path):
    vae = save_autoencoder(tmp_path / "vae")
    result = encode(images, tmp_path / "latents", autoencoder=str(vae), resolution=32, flip=True)
    folder = LatentFolder(result.latents)
    plain, mirrored = folder.batch(range(15)), folder.batch(range(15), flip=[True] * 15)
    assert plain.std is not None
    assert mirrored.std is not None
    assert not torch.equal(plain.mean, mirrored.mean)
    both = LatentBatch(torch.cat([plain.mean, mirrored.mean]), torch.cat([plain.std, mirrored.std]), plain.labels)
    one = torch.ones(both.mean.shape)  # noise of exactly mean 0 and variance 1 for every latent: no chance
    latents = torch.cat([draw_latents(both, noise, folder.spec.normalisation) for noise in (one, -one)])
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (latents.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_missing_mirror_images_are_refused(images: Path, tmp_path: Path):
    vae = save_autoencoder(tmp_path / "vae")
    result = encode(images, tmp_path / "latents", autoencoder=str(vae), resolution=8, flip=False)
    folder = LatentFolder(result.latents)
    assert not folder.has_flips
    with refused("no-flips"):
        folder.batch([0], flip=[True])


def test_order_is_seekable():
    order = EpochOrder(10, seed=3)
    stream = order.indices(0, 40)
    assert sorted(stream[10:20].tolist()) == list(range(10))
    assert np.array_equal(EpochOrder(10, seed=3).indices(17, 33), stream[17:33])
    assert not np.array_equal(stream[:10], stream[10:20])
    assert not np.array_equal(EpochOrder(10, seed=4).indices(0, 10), stream[:10])
    assert stream[:10].tolist() == ORDER  # the same on every machine and version


ORDER = [8, 9, 1, 3, 2, 6, 0, 4, 7, 5]


def test_what_is_no_folder_of_latents(images: Path, pixels: LatentFolder, tmp_path: Path):
    with refused("no-latents"):
        LatentFolder(tmp_path / "nowhere")
    with refused("no-latents", "8 px"):
        find_latents(tmp_path, resolution=Size.square(8))
    out = encode(images, tmp_path / "a").latents
    assert find_latents(tmp_path, resolution=Size.square(8)) == out
    encode(images, tmp_path / "b")
    with refused("ambiguous-latents"):
        find_latents(tmp_path, resolution=Size.square(8))
    write_json(tmp_path / "b/manifest.json", {"format": 3})  # of an older version: the other one is found
    assert find_latents(tmp_path) == out
    (tmp_path / "only").mkdir()
    (tmp_path / "b").rename(tmp_path / "only/b")
    with refused("unknown-format"):
        find_latents(tmp_path / "only")
    opened = LatentFolder(out)
    (out / "shard-00002.safetensors").unlink()
    with refused("no-such-file", "shard-00002"):
        opened.shard(2)
    with refused("no-such-file", "shard-00002"):
        LatentFolder(out)
    write_json(out / "manifest.json", read_json(out / "manifest.json") | {"format": 3})
    with refused("unknown-format"):
        LatentFolder(out)
