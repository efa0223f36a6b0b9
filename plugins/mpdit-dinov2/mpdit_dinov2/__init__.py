"""FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675) for mpdit: the class token of DINOv2 ViT-L/14 as features."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor

from mpdit_core.api import Features, UserError, option

LETTERS = {"small": "s", "base": "b", "large": "l", "giant": "g"}
SIDE, PATCH = 224, 14
GRID = SIDE // PATCH
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RULE = "bicubic 224 as PIL, clipped, ImageNet mean and std, positions by DINOv2's rule, class token"


@dataclass
class DINOv2:
    """DINOv2 ViT/14: `pool` [B, 1024] for the large network (small 384, base 768, giant 1536), float32.

    As a teacher: the normalised patch tokens of images resized to 224 × 224, as in REPA: [B, 1024, 16, 16].
    """

    plugin_api: ClassVar[int] = 2
    name: ClassVar[str] = "dinov2"

    size: str = option("large", "small, base, large or giant; FD-DINOv2 as published is large")
    weights: str = option("", "a .pth or .safetensors file; empty: torch's cache, then the Hugging Face Hub")
    weights_sha256: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.size not in LETTERS:
            raise UserError(f"size {self.size!r}", code="invalid-value", expected=", ".join(LETTERS))

    def load(self, device: torch.device) -> None:
        """Reads the weights. Raises `UserError` if they are missing or belong to another network."""
        path = Path(self.weights).expanduser() if self.weights else self._find()
        state = _read(path)
        network = timm.create_model(
            f"vit_{self.size}_patch14_dinov2", num_classes=0, img_size=SIDE, global_pool="token", pretrained=False
        )
        state.pop("mask_token", None)  # for training with masks; the authors' file has it, timm's does not
        try:
            state["pos_embed"] = resize_positions(state["pos_embed"])
            network.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{path} does not hold DINOv2's {self.size} network: {reason}",
                code="wrong-weights",
                expected=f"{self._file} of the authors, or model.safetensors of {self._repository}",
                remedy="another size: --set features.size=" + "|".join(LETTERS),
            ) from error
        self.weights_sha256 = _sha256(path)
        self.network: Any = network.eval().requires_grad_(False).to(device)
        self.mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Features:
        """The class token for `images [B, 3, H, W]` uint8 of any size."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return Features(pool=self.network(self._normalised(images)))

    def feature_map(self, images: Tensor) -> Tensor:
        """The map of patch tokens for `images [B, 3, H, W]` uint8 of any size."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            tokens = self.network.forward_features(self._normalised(images))[:, 1:]  # without the class token
        return tokens.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2).contiguous()

    def _normalised(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        return (x.clamp(0, 255) / 255 - self.mean) / self.std

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.size} {RULE} {self.weights_sha256}".encode()).hexdigest()

    @property
    def _file(self) -> str:
        return f"dinov2_vit{LETTERS[self.size]}14_pretrain.pth"

    @property
    def _repository(self) -> str:
        return f"timm/vit_{self.size}_patch14_dinov2.lvd142m"

    def _find(self) -> Path:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / self._file
        if cached.is_file():
            return cached
        try:
            return Path(hf_hub_download(self._repository, "model.safetensors"))
        except Exception as error:  # offline machines fail in many ways: DNS, proxies, certificates, offline mode
            raise UserError(
                f"the weights of DINOv2 are not at {cached} and cannot be downloaded: {type(error).__name__}",
                code="no-weights",
                expected=f"{self._file}, or model.safetensors of {self._repository}",
                remedy=f"on a machine with internet access: hf download {self._repository} model.safetensors; "
                "then --set features.weights=FILE",
            ) from error


def resize_positions(table: Tensor) -> Tensor:
    """Position embeddings [1, 1 + n², F] of an n × n grid, interpolated to 16 × 16: [1, 257, F].

    By the rule of DINOv2's published features: bicubic, without antialiasing, with the scale factor (16 + 0.1) / n.
    Raises `ValueError` if the table does not have a square grid and a class token.
    """
    n = math.isqrt(table.shape[1] - 1) if table.ndim == 3 else 0
    if table.ndim != 3 or n * n + 1 != table.shape[1]:
        raise ValueError(f"pos_embed of shape {tuple(table.shape)}, not [1, 1 + n², features]")
    if n == GRID:
        return table
    first, rest = table[:, :1].float(), table[:, 1:].float()
    grid = rest.unflatten(1, (n, n)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(GRID + 0.1) / n, mode="bicubic")
    return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: the file does not exist", code="no-such-file", expected="a .pth or .safetensors file"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be read as weights: {reason}",
            code="damaged-file",
            expected="a state dict saved by torch, or a .safetensors file",
            remedy="it may be truncated: delete it and download it again",
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
