"""Every family of image autoencoders in diffusers keeps the contract, and what is peculiar to some."""

from __future__ import annotations

import json
import math
from pathlib import Path

import diffusers
import pytest
import torch
from autoencoder_families import FAMILIES, kl, save_family
from data_helpers import encode, image_folder, refused

from mpdit_core.data.autoencoders import load_autoencoder
from mpdit_core.data.autoencoders.diffusers import WEIGHTS, DiffusersAutoencoder
from mpdit_core.data.latents import LatentFolder
from mpdit_core.errors import UserError
from mpdit_core.size import Size
from mpdit_core.testing import check_autoencoder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_keeps_the_contract(name: str, tmp_path: Path):
    family = FAMILIES[name]
    plugin = DiffusersAutoencoder(save_family(name, tmp_path))
    check_autoencoder(plugin, side=family.side, psnr=-math.inf)
    assert (plugin.channels, plugin.factor, plugin.stores) == (family.channels, family.factor, family.stores)
    assert {parameter.dtype for parameter in plugin.network.parameters()} == {torch.float32}
    spec = load_autoencoder(str(tmp_path)).spec
    assert (spec.channels, spec.factor, spec.stores) == (family.channels, family.factor, family.stores)
    assert load_autoencoder(spec).spec.sha256 == spec.sha256


@pytest.mark.parametrize("name", ["VQ", "DC-AE f32", "SD 3"])
def test_a_family_encodes_a_folder(name: str, tmp_path: Path):
    family = FAMILIES[name]
    images = image_folder(tmp_path / "images", each=2)
    vae = save_family(name, tmp_path / "vae")
    result = encode(images, tmp_path / "latents", autoencoder=str(vae), resolution=64)
    side = 64 // family.factor
    assert (result.stores, result.latent_shape) == (family.stores, (family.channels, side, side))
    assert len(LatentFolder(result.latents).batch([0, 5], flip=[False, True]).mean) == 2


def test_scaling_and_shift_factor_play_no_part(tmp_path: Path):
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    vae = save_family("FLUX.1", tmp_path)
    before = load_autoencoder(str(vae)).encode(images)
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"scaling_factor": 7.0, "shift_factor": -3.0}))
    assert torch.equal(load_autoencoder(str(vae)).encode(images), before)


def test_a_decoder_that_overflows_in_float16_does_not_here(tmp_path: Path):
    """SDXL's: activations beyond 65504, float16's largest number, inside of its decoder."""
    loaded = load_autoencoder(str(save_family("SDXL", tmp_path)))
    network = loaded.plugin.network  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        network.decoder.conv_in.weight *= 1e6
    raw = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert network.decoder.conv_in(network.post_quant_conv(raw)).abs().max() > 65504
    exact = loaded.decode(raw)
    loaded.decode_precision = "bfloat16"
    assert (loaded.decode(raw).int() - exact.int()).abs().float().mean() < 4
    assert exact.float().std() > 0


def test_what_takes_no_rgb_image_is_refused(tmp_path: Path):
    torch.manual_seed(0)
    diffusers.AutoencoderKL(**kl(4, in_channels=4, out_channels=4)).save_pretrained(tmp_path / "rgba")
    with refused("unknown-autoencoder", "AutoencoderKL"):
        load_autoencoder(str(tmp_path / "rgba"))


def test_a_subfolder_and_a_revision_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "1" * 40
    model = tmp_path / "hub/models--org--name"
    save_family("SD 1, SD 2", model / "snapshots" / commit / "vae")
    (model / "refs").mkdir()
    (model / "refs/v1").write_text(commit)
    spec = load_autoencoder("org/name:vae@v1").spec
    assert (spec.id, spec.revision) == ("org/name:vae", commit)
    assert load_autoencoder(spec).spec == spec
    with pytest.raises(UserError) as caught:
        load_autoencoder("org/name@v1")  # its root holds no autoencoder
    assert (caught.value.code, "org/name:vae" in str(caught.value.remedy)) == ("no-such-file", True)
    (model / "snapshots" / commit / "vae" / WEIGHTS).unlink()
    with refused("no-such-file"):
        load_autoencoder(spec)


def test_an_autoencoder_of_one_resolution(tmp_path: Path):
    loaded = load_autoencoder(str(save_family("RAE", tmp_path)))
    loaded.require_resolution(Size.square(64))
    with refused("resolution-does-not-fit"):
        loaded.require_resolution(Size.square(128))
