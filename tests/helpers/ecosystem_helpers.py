"""Files as the official code writes them, made from the golden weights; and a small model folder and run of mpdit."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from golden_files import official_weights, read
from sample_helpers import fill_zero_parameters
from torch import Tensor

from mpdit_core.config import RunConfig
from mpdit_core.data.manifest import AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import ModelFolder, open_model, save_model
from mpdit_core.presets import load_preset

DENSE = Path(__file__).parents[1] / "golden" / "dit_dense.safetensors"


def official_file(weights: dict[str, Tensor], path: Path, *, model: str = "", prefix: str = "") -> Path:
    """A `.pt` as the official training script saves it. `ema` holds `weights`; `model` holds other values."""
    ema = {prefix + name: tensor for name, tensor in weights.items()}
    raw = {prefix + name: tensor + (name != "pos_embed") for name, tensor in weights.items()}
    opt = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    args = argparse.Namespace(model=model, global_batch_size=256, use_cfg=True, paths=["a", "b"])
    torch.save({"model": raw, "ema": ema, "opt": opt, "args": args}, path)
    return path


def dense_weights() -> dict[str, Tensor]:
    _, tensors = read(DENSE)
    return official_weights(tensors)


def with_variance(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with DiT's and SiT's output layer: an output patch is (p, p, 2C), and the last C are not velocity."""
    changed = dict(weights)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = weights[name].view(2, 2, 4, *weights[name].shape[1:])
        changed[name] = torch.cat([rows, torch.randn_like(rows)], dim=2).flatten(0, 2)
    return changed


def random_model(config: RunConfig | None = None, *, seed: int = 0) -> tuple[MPDiT, RunConfig]:
    """A network whose output layers are not zero, unlike at the start of training."""
    config = config or load_preset("tiny")
    torch.manual_seed(seed)
    model = MPDiT(config.model)
    fill_zero_parameters(model, std=0.05)
    return model.eval(), config


def latent_spec(config: RunConfig) -> LatentSpec:
    return LatentSpec(
        resolution=config.resolution,
        autoencoder=AutoencoderSpec(id="pixels-gray", factor=1, channels=1),
        normalisation=Normalisation(name="measured", mean=(-0.4,), std=(0.7,)),
        class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        source="digits",
        count=100,
    )


def run_with_a_checkpoint(root: Path) -> Path:
    """A run with a checkpoint at step 7 and previews."""
    folder = root / "runs" / "tiny-1"
    model_folder(folder / "checkpoints" / "step-0000007")
    (folder / "samples").mkdir()
    for step in (4, 7):
        (folder / "samples" / f"step-{step:07d}.png").write_bytes(b"picture of %d" % step)
        (folder / "samples" / f"step-{step:07d}-raw.png").write_bytes(b"raw")
    return folder


def model_folder(path: Path, *, seed: int = 0, config: RunConfig | None = None) -> ModelFolder:
    """A tiny grey model of 10 classes with all that a checkpoint has."""
    model, config = random_model(config, seed=seed)
    save_model(path, model.state_dict(), config=config, latents=latent_spec(config), step=7, images_seen=56)
    return open_model(path)
