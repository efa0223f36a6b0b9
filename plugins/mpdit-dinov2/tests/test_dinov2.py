"""DINOv2 with random weights of the real shapes: against the network written out and PIL; mistakes of users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from mpdit_dinov2 import GRID, MEAN, SIDE, STD, DINOv2, resize_positions
from PIL import Image
from safetensors.torch import save_file

from mpdit_core.api import UserError
from mpdit_core.testing import check_features

WIDTH, HEADS, DEPTH = 384, 6, 12  # the small network


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Like the authors' file for the small network: a 37 × 37 grid, a mask token, no head; every tensor random."""
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518, pretrained=False)
    tensors = {name: 0.05 * torch.randn_like(v) for name, v in network.state_dict().items()}
    for name in tensors:
        if "norm" in name and name.endswith("weight"):
            tensors[name] += 1
    return tensors | {"mask_token": torch.zeros(1, WIDTH)}


@pytest.fixture(scope="module")
def weights(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dinov2_vits14_pretrain.pth"
    torch.save(state, path)
    return path


def loaded(weights: Path) -> DINOv2:
    extractor = DINOv2(size="small", weights=str(weights))
    extractor.load(torch.device("cpu"))
    return extractor


def written_out(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The ViT of the paper in float64, `x` [B, 3, 224, 224] normalised; all tokens."""
    s = {name: v.double() for name, v in state.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-6)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    patches = x.double().unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    h = patches @ s["patch_embed.proj.weight"].flatten(1).T + s["patch_embed.proj.bias"]
    h = torch.cat([s["cls_token"].expand(len(h), -1, -1), h], 1) + resize_positions(s["pos_embed"]).double()
    for i in range(DEPTH):
        b = f"blocks.{i}"
        q, k, v = linear(norm(h, f"{b}.norm1"), f"{b}.attn.qkv").unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = torch.softmax(q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5, -1) @ v
        h = h + s[f"{b}.ls1.gamma"] * linear(attended.transpose(1, 2).flatten(2), f"{b}.attn.proj")
        hidden = F.gelu(linear(norm(h, f"{b}.norm2"), f"{b}.mlp.fc1"))
        h = h + s[f"{b}.ls2.gamma"] * linear(hidden, f"{b}.mlp.fc2")
    return norm(h, "norm")


def test_keeps_the_contract(weights: Path):
    check_features(DINOv2(size="small", weights=str(weights)), side=32)


@pytest.mark.parametrize("side", [64, 256])
def test_equals_the_network_written_out_on_pictures_resized_by_pil(
    state: dict[str, torch.Tensor], weights: Path, side: int
):
    pictures = np.random.default_rng(side).integers(0, 256, (2, 3, side, side), np.uint8)
    channels = [Image.fromarray(c) for c in pictures.reshape(-1, side, side).astype(np.float32)]
    resized = np.stack([np.asarray(c.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for c in channels])
    x = torch.from_numpy(resized.clip(0, 255)).view(2, 3, SIDE, SIDE) / 255
    expected = written_out(state, (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    extractor = loaded(weights)
    pool, patches = extractor(torch.from_numpy(pictures)).pool, extractor.feature_map(torch.from_numpy(pictures))
    assert pool.dtype == torch.float32
    assert (pool - expected[:, 0]).abs().max() < 1e-4 * expected[:, 0].abs().max()
    assert patches.shape == (2, WIDTH, GRID, GRID)
    assert (patches.flatten(2).mT - expected[:, 1:]).abs().max() < 1e-4 * expected[:, 1:].abs().max()


def test_positions_are_taken_where_dinov2_takes_them():
    """A ramp shows where it is sampled: at (i + 0.5) 37 / 16.1 - 0.5, within 0.06 (37 / 16 would be 0.2 off)."""
    ramp = torch.arange(37.0).repeat(37, 1)  # grows along the columns
    table = torch.cat([torch.zeros(1, 1, 1), ramp.flatten().view(1, -1, 1)], 1)
    grid = resize_positions(table)[0, 1:, 0].view(GRID, GRID)
    expected = (torch.arange(GRID) + 0.5) * 37 / (GRID + 0.1) - 0.5
    assert torch.allclose(grid[5, 2:-2], expected[2:-2], atol=0.06, rtol=0)
    assert not torch.allclose(grid[5, 2:-2], (torch.arange(2, GRID - 2) + 0.5) * 37 / GRID - 0.5, atol=0.06, rtol=0)


def test_reads_timms_safetensors_alike_and_the_fingerprint_follows_the_weights(
    state: dict[str, torch.Tensor], weights: Path, tmp_path: Path
):
    other = tmp_path / "model.safetensors"
    save_file({name: v for name, v in state.items() if name != "mask_token"}, other)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    a, b = loaded(weights), loaded(other)
    assert torch.equal(a(images).pool, b(images).pool)
    assert a.fingerprint() == loaded(weights).fingerprint() != b.fingerprint()


def test_every_mistake_has_its_code(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def code(**options: str) -> str:
        with pytest.raises(UserError) as caught:
            DINOv2(**options).load(torch.device("cpu"))
        return caught.value.code

    torn = tmp_path / "torn.pth"
    torn.write_bytes(weights.read_bytes()[:10_000])
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    flat = tmp_path / "flat.pth"
    torch.save({"pos_embed": torch.zeros(3)}, flat)
    assert code(size="huge") == "invalid-value"
    assert code(weights=str(tmp_path / "none.pth")) == "no-such-file"
    assert code(weights=str(torn)) == "damaged-file"
    assert code(size="base", weights=str(weights)) == "wrong-weights"  # the small network's
    assert code(size="small", weights=str(other)) == "wrong-weights"
    assert code(size="small", weights=str(flat)) == "wrong-weights"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert code() == "no-weights"
