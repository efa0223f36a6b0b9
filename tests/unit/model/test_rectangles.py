"""Networks for rectangles: a square one is the special case, and height and width are not exchanged anywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.model.positions import position_table, rotation_table
from mpdit_core.model.tokens import PatchEmbedding, unpatchify
from mpdit_core.model.transformer import MPDiT
from mpdit_core.size import Size

STAGES = (Stage(4, 1), Stage(2, 1), Stage(1, 1))


def config(input_size: object, **changed: object) -> ModelConfig:
    values: dict[str, Any] = dict(width=32, num_heads=2, stages=STAGES, channels=3, num_classes=4, class_tokens=2)
    values |= dict(input_size=input_size) | changed
    return ModelConfig(**values)


@pytest.fixture(params=["sincos", "both"])
def awake(request) -> MPDiT:
    """A network for 8 × 12 latents whose output is not the zero that it is initialised to."""
    torch.manual_seed(0)
    model = MPDiT(config("8x12", positions=request.param))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def velocity(model: MPDiT, x_t: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x_t, torch.tensor([0.4]), torch.tensor([1]))


def test_equal_sides_are_the_square_bit_by_bit():
    square, rectangle = config(8), config([8, 8])
    assert square == rectangle
    assert square.model_dump()["input_size"] == 8


def test_a_pixel_changes_its_own_patch_most(awake: MPDiT):
    x_t = torch.randn(1, 3, 8, 12)
    changed = x_t.clone()
    changed[0, :, 6, 10] += 1
    assert velocity(awake, x_t).shape == (1, 3, 8, 12)
    moved = (velocity(awake, changed) - velocity(awake, x_t)).abs().sum(1)
    assert divmod(int(avg_pool2d(moved, 4).argmax()), 3) == (1, 2)


def test_patches_cut_and_put_together_give_the_image():
    x = torch.arange(3 * 4 * 6.0).view(1, 3, 4, 6)
    cut = PatchEmbedding(config(8, width=12), 2)
    torch.nn.init.eye_(cut.linear.weight)
    torch.nn.init.zeros_(cut.linear.bias)
    patches = cut(x).detach().view(1, 6, 3, 4).transpose(2, 3).flatten(2)  # (C, p, p) to (p, p, C)
    assert torch.equal(unpatchify(patches, size=Size(4, 6), patch_size=2), x)


def test_positions_are_those_of_the_square_cut_to_the_rectangle():
    square, wide = position_table(16, Size(6, 6)).view(6, 6, 16), position_table(16, Size(4, 6)).view(4, 6, 16)
    assert torch.equal(wide, square[:4])
    square, tall = (rotation_table(config(size), 2)[:, 2:, 0] for size in ("12x12", "12x8"))
    assert torch.equal(tall.view(2, 6, 4, 8), square.view(2, 6, 6, 8)[:, :, :4])


def test_a_side_that_a_patch_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="8x10"):
        config("8x10")
