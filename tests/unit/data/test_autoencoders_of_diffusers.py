"""Every family of image autoencoders in diffusers: its published configuration, thinner, with random weights.

Layout, factor, channels and which convolutions exist are those of the published config.json; widths are not.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from data_helpers import encode, image_folder, refused

from mpdit_core.data.autoencoders import load_autoencoder
from mpdit_core.data.autoencoders.diffusers import WEIGHTS, DiffusersAutoencoder
from mpdit_core.data.latents import LatentFolder
from mpdit_core.errors import UserError
from mpdit_core.size import Size
from mpdit_core.testing import check_autoencoder

THIN = (8, 8, 8, 8)
UNQUANTISED: dict[str, Any] = {"use_quant_conv": False, "use_post_quant_conv": False}


class Family(NamedTuple):
    kind: str
    config: dict[str, Any]
    channels: int
    factor: int
    stores: str
    side: int = 64  # of the images in the test


def kl(channels: int, **more: Any) -> dict[str, Any]:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    sizes = {"block_out_channels": THIN, "norm_num_groups": 4, "layers_per_block": 1}
    return {**blocks, **sizes, "latent_channels": channels, **more}


def dc(channels: int, stages: int) -> dict[str, Any]:
    """DC-AE: residual blocks, then EfficientViT blocks, one halving less than there are stages."""
    blocks = ["ResBlock"] * (stages - 3) + ["EfficientViTBlock"] * 3
    scales = [[]] * (stages - 3) + [[5]] * 3
    widths = [8] * (stages - 3) + [32, 32, channels]
    return {
        "latent_channels": channels, "attention_head_dim": 32,
        "encoder_block_types": blocks, "decoder_block_types": blocks,
        "encoder_block_out_channels": widths, "decoder_block_out_channels": widths,
        "encoder_layers_per_block": [0, *[1] * (stages - 1)], "decoder_layers_per_block": [0, *[1] * (stages - 1)],
        "encoder_qkv_multiscales": scales, "decoder_qkv_multiscales": scales,
        "upsample_block_type": "interpolate", "downsample_block_type": "Conv", "decoder_act_fns": "silu",
        "decoder_norm_types": "rms_norm", "scaling_factor": 0.41407,
    }  # fmt: skip


FAMILIES = {
    "SD 1, SD 2": Family("AutoencoderKL", kl(4), 4, 8, "mean+std"),
    "SDXL": Family("AutoencoderKL", kl(4, scaling_factor=0.13025, force_upcast=True), 4, 8, "mean+std"),
    "SD 3": Family(
        "AutoencoderKL", kl(16, scaling_factor=1.5305, shift_factor=0.0609, **UNQUANTISED), 16, 8, "mean+std"
    ),
    "FLUX.1": Family(
        "AutoencoderKL", kl(16, scaling_factor=0.3611, shift_factor=0.1159, **UNQUANTISED), 16, 8, "mean+std"
    ),
    "FLUX.2": Family("AutoencoderKLFlux2", kl(32), 32, 8, "mean+std"),
    "TAESD": Family(
        "AutoencoderTiny",
        {"encoder_block_out_channels": THIN, "decoder_block_out_channels": THIN, "num_encoder_blocks": [1] * 4,
         "num_decoder_blocks": [1] * 4},
        4, 8, "mean",
    ),
    "VQ": Family(
        "VQModel",
        {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
         "block_out_channels": THIN[:3], "norm_num_groups": 4, "latent_channels": 3, "num_vq_embeddings": 64},
        3, 4, "mean",
    ),
    "DC-AE f32": Family("AutoencoderDC", dc(32, 6), 32, 32, "mean"),
    "DC-AE f64": Family("AutoencoderDC", dc(128, 7), 128, 64, "mean", 128),
    "RAE": Family(
        "AutoencoderRAE",
        {"encoder_type": "dinov2", "encoder_hidden_size": 64, "encoder_patch_size": 14, "encoder_num_hidden_layers": 1,
         "encoder_input_size": 56, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
         "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "patch_size": 16},
        64, 16, "mean",
    ),
}  # fmt: skip


def save(family: Family, folder: Path) -> Path:
    if not hasattr(diffusers, family.kind):
        pytest.skip(f"this diffusers has no {family.kind}")
    if family.kind == "AutoencoderRAE":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    getattr(diffusers, family.kind)(**family.config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_keeps_the_contract(name: str, tmp_path: Path):
    family = FAMILIES[name]
    plugin = DiffusersAutoencoder(save(family, tmp_path))
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
    vae = save(family, tmp_path / "vae")
    result = encode(images, tmp_path / "latents", autoencoder=str(vae), resolution=64)
    side = 64 // family.factor
    assert (result.stores, result.latent_shape) == (family.stores, (family.channels, side, side))
    assert len(LatentFolder(result.latents).batch([0, 5], flip=[False, True]).mean) == 2


def test_scaling_and_shift_factor_play_no_part(tmp_path: Path):
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    vae = save(FAMILIES["FLUX.1"], tmp_path)
    before = load_autoencoder(str(vae)).encode(images)
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"scaling_factor": 7.0, "shift_factor": -3.0}))
    assert torch.equal(load_autoencoder(str(vae)).encode(images), before)


def test_a_decoder_that_overflows_in_float16_does_not_here(tmp_path: Path):
    """SDXL's: activations beyond 65504, float16's largest number, inside of its decoder."""
    loaded = load_autoencoder(str(save(FAMILIES["SDXL"], tmp_path)))
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
    save(FAMILIES["SD 1, SD 2"], model / "snapshots" / commit / "vae")
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
    loaded = load_autoencoder(str(save(FAMILIES["RAE"], tmp_path)))
    loaded.check_resolution(Size.square(64))
    with refused("resolution-does-not-fit"):
        loaded.check_resolution(Size.square(128))
