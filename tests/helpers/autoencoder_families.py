"""Every family of image autoencoders in diffusers: its published configuration with small widths and random weights.

Layout, factor, channels and the set of convolutions are those of the published config.json; widths are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch

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
    """DC-AE: residual blocks, then EfficientViT blocks. The factor is 2^(stages - 1)."""
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
    "HunyuanImage": Family(
        "AutoencoderKLHunyuanImage",
        {"in_channels": 3, "out_channels": 3, "latent_channels": 64, "block_out_channels": (32,) * 5 + (128,),
         "layers_per_block": 1, "spatial_compression_ratio": 32, "sample_size": 384},
        64, 32, "mean+std",
    ),
    "MoVQ": Family(
        "VQModel",
        {"down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
         "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3, "block_out_channels": (32,) * 4,
         "norm_num_groups": 32, "latent_channels": 4, "num_vq_embeddings": 64, "vq_embed_dim": 4,
         "norm_type": "spatial"},
        4, 8, "mean",
    ),
    "RAE": Family(
        "AutoencoderRAE",
        {"encoder_type": "dinov2", "encoder_hidden_size": 64, "encoder_patch_size": 14, "encoder_num_hidden_layers": 1,
         "encoder_input_size": 56, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
         "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "patch_size": 16},
        64, 16, "mean",
    ),
}  # fmt: skip


def save_family(name: str, folder: Path) -> Path:
    """Skips the test where a package that the family needs is missing."""
    family = FAMILIES[name]
    if not hasattr(diffusers, family.kind):
        pytest.skip(f"this diffusers has no {family.kind}")
    if family.kind == "AutoencoderRAE":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    getattr(diffusers, family.kind)(**family.config).save_pretrained(folder)
    return folder
