"""What autoencoders store, that what is stored is read back, and which ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import refused, save_autoencoder

from mpdit_core.data.autoencoders import PixelAutoencoder, load_autoencoder
from mpdit_core.data.autoencoders.base import read_stored, to_range
from mpdit_core.data.manifest import EncodingPlan, SourceSpec
from mpdit_core.data.shards import channel_sums

CPU = torch.device("cpu")
PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8))


@pytest.mark.parametrize("gray", [False, True])
def test_pixels_are_exact(gray: bool):
    autoencoder = PixelAutoencoder(gray=gray, device=CPU)
    stored = autoencoder.encode(PICTURES)
    assert stored.dtype == torch.uint8
    mean, std = read_stored(stored, autoencoder.spec.stores)
    assert std is None
    assert torch.equal(autoencoder.decode(mean), stored.expand(-1, 3, -1, -1))
    if gray:
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)
        assert (stored - (PICTURES * weights).sum(1, keepdim=True)).abs().max() <= 0.5 + 1e-4
    else:
        assert torch.equal(stored, PICTURES)


def test_a_posterior_is_stored_as_mean_and_standard_deviation(tmp_path: Path):
    autoencoder = load_autoencoder(str(save_autoencoder(tmp_path / "vae")))
    stored = autoencoder.encode(PICTURES)
    assert (autoencoder.spec.stores, autoencoder.spec.factor, autoencoder.spec.channels) == ("mean+std", 8, 4)
    mean, std = read_stored(stored, "mean+std")
    posterior = autoencoder.network.encode(to_range(PICTURES)).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
    assert std is not None
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(std, posterior.std)
    assert read_stored(mean.half(), "mean")[1] is None


@pytest.mark.parametrize("stores", ["mean+std", "mean", "uint8"])
def test_sums_are_those_of_what_is_read(stores):
    spec = PixelAutoencoder(gray=False, device=CPU).spec.model_copy(update={"stores": stores})
    source = SourceSpec(given="", name="", fingerprint="", items=5)
    plan = EncodingPlan(
        source=source, resolution=16, autoencoder=spec, flip=False, batch_size=1, shard_size=5, class_names=("a",)
    )
    random = np.random.default_rng(0)
    if stores == "uint8":
        stored = PICTURES.numpy()
    else:
        stored = random.standard_normal((5, *plan.stored_shape)).astype(np.float16)
    mean, std = (None if x is None else x.double() for x in read_stored(torch.from_numpy(stored), stores))
    square = mean**2 + (0 if std is None else std**2)
    sums = channel_sums([stored], plan)
    assert np.allclose(sums[0], mean.sum(dim=(0, 2, 3)), rtol=0, atol=1e-3)  # float32 of what is read
    assert np.allclose(sums[1], square.sum(dim=(0, 2, 3)), rtol=1e-6)


def test_refused_autoencoders(tmp_path: Path):
    with refused("no-such-autoencoder"):
        load_autoencoder(str(tmp_path / "none"))
    with refused("hub-unreachable", "some/where"):
        load_autoencoder("some/where")
    vae = save_autoencoder(tmp_path / "vae")
    spec = load_autoencoder(str(vae)).spec
    with refused("another-autoencoder"):
        load_autoencoder(spec.model_copy(update={"sha256": "0" * 64}))
    with refused("resolution-does-not-fit"):
        load_autoencoder(str(vae)).check_resolution(100)
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    with refused("unknown-autoencoder", "VQModel"):
        load_autoencoder(str(vae))
