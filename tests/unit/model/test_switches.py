"""The switches of the backbone: rotary positions, SwiGLU, RMSNorm, QK norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from data_helpers import refused
from ecosystem_helpers import random_model

from mpdit_core.config import ModelConfig
from mpdit_core.model.attention import HeadNorm
from mpdit_core.model.blocks import Block, Modulation
from mpdit_core.model.compute import parameter_count
from mpdit_core.model.positions import rotate, rotation_table
from mpdit_core.model.transformer import MPDiT
from mpdit_core.presets import load_preset
from mpdit_core.settings import validate

TINY = load_preset("tiny")
ALL = {"mlp": "swiglu", "norm": "rms", "qk_norm": True, "positions": "both"}
SWITCHES = [{"mlp": "swiglu"}, {"norm": "rms"}, {"qk_norm": True}, {"positions": "rope"}, {"positions": "both"}, ALL]


def model_with(switches: dict[str, Any]) -> MPDiT:
    model, _ = random_model(TINY.model_copy(update={"model": TINY.model.model_copy(update=switches)}))
    return model


def inputs(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_t = torch.randn(2, config.channels, *config.input_size, generator=torch.Generator().manual_seed(1))
    return x_t, torch.tensor([0.2, 0.7]), torch.tensor([3, config.null_label])


@torch.no_grad()
def test_every_switch_makes_another_network():
    x_t, t, labels = inputs(TINY.model)
    velocities = [model_with(switches)(x_t, t, labels) for switches in [{}, *SWITCHES]]
    for i, one in enumerate(velocities):
        assert all(not torch.allclose(one, other, rtol=1e-3) for other in velocities[:i])


@torch.no_grad()
def test_a_network_that_predicts_latents_returns_the_velocity_towards_them():
    """`(x_t - latents) / max(t, 0.05)` (JiT, arXiv 2511.13720)."""
    x_t, _, labels = inputs(TINY.model)
    output, velocity = model_with({}), model_with({"prediction": "latents"})
    velocity.load_state_dict(output.state_dict())
    for t in (torch.tensor([0.2, 0.7]), torch.tensor([0.01]), torch.tensor([0.0])):
        expected = (x_t - output(x_t, t, labels)) / t.clamp(min=0.05).view(-1, 1, 1, 1)
        torch.testing.assert_close(velocity(x_t, t, labels), expected)


def angles(patch_size: int) -> torch.Tensor:
    """The rotations of the image tokens as complex numbers `[side, side, d/2]`."""
    cos, sin = rotation_table(TINY.model, patch_size)[:, TINY.model.class_tokens :, 0].double()
    side = TINY.model.input_size.width // patch_size
    return torch.complex(cos, sin).view(side, side, -1)


def test_a_coarse_token_sits_at_the_centre_of_its_fine_ones():
    coarse, fine = angles(4), angles(2)
    torch.testing.assert_close(fine[0::2, 0::2] * fine[1::2, 1::2], coarse * coarse, rtol=0, atol=1e-5)
    torch.testing.assert_close(fine[0::2, 1::2] * fine[1::2, 0::2], coarse * coarse, rtol=0, atol=1e-5)


def test_class_tokens_are_not_rotated():
    tokens = torch.randn(1, TINY.model.class_tokens + 16, 2, 16)
    turned = rotate(tokens, rotation_table(TINY.model, 4))
    M = TINY.model.class_tokens
    assert torch.equal(turned[:, :M], tokens[:, :M])
    assert not torch.isclose(turned[:, M:], tokens[:, M:]).all(dim=-1).any()
    torch.testing.assert_close(turned.norm(dim=-1), tokens.norm(dim=-1))


def test_what_two_tokens_see_of_each_other_depends_on_their_distance_alone():
    """In latent pixels: neighbours at patch 4 are as far apart as fine tokens with one between them."""
    q, k = torch.randn(2, 1, 1, 1, 16)

    def score(patch_size: int, one: tuple[int, int], other: tuple[int, int]) -> float:
        M, side = TINY.model.class_tokens, TINY.model.input_size.width // patch_size
        table = rotation_table(TINY.model, patch_size)
        places = [M + row * side + column for row, column in (one, other)]
        turned = [rotate(each, table[:, place : place + 1]) for each, place in zip((q, k), places, strict=True)]
        return float((turned[0] * turned[1]).sum())

    coarse = score(4, (0, 1), (1, 3))
    assert coarse == pytest.approx(score(4, (2, 0), (3, 2)), abs=1e-4)
    assert coarse == pytest.approx(score(2, (1, 3), (3, 7)), abs=1e-4)
    assert coarse != pytest.approx(score(4, (0, 1), (2, 3)), abs=1e-4)


def test_queries_and_keys_have_unit_length_per_feature():
    normed = HeadNorm(16)(5 * torch.randn(2, 7, 3, 16))
    torch.testing.assert_close(normed.square().mean(dim=-1), torch.ones(2, 7, 3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("preset", ["b-256", "l-256", "xl-256"])
def test_swiglu_has_as_many_parameters(preset: str):
    config = load_preset(preset).model
    gated = config.model_copy(update={"mlp": "swiglu"})
    assert gated.mlp_hidden % 8 == 0
    assert parameter_count(gated) == pytest.approx(parameter_count(config), rel=2e-3)


@pytest.mark.parametrize("switches", SWITCHES)
def test_a_block_compiles_to_one_graph(switches: dict[str, Any]):
    config = TINY.model.model_copy(update=switches)
    torch.manual_seed(0)
    block = Block(config)
    tokens, cond = torch.randn(2, config.class_tokens + 16, config.width), torch.randn(2, config.width)
    shared = Modulation(*torch.randn(6, 2, 1, config.width))
    rotations = None if config.positions == "sincos" else rotation_table(config, 4)
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(tokens, cond, shared, rotations), block(tokens, cond, shared, rotations))


@pytest.mark.parametrize("switches", SWITCHES)
def test_in_bfloat16_the_residual_stream_stays_float32(switches: dict[str, Any]):
    model = model_with(switches)
    x_t, t, labels = inputs(model.config)
    types: list[torch.dtype] = []
    model.head.register_forward_pre_hook(lambda _, given: types.append(given[0].dtype))
    with torch.no_grad():
        exact = model(x_t, t, labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(x_t, t, labels)
    assert types == [torch.float32, torch.float32]
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_heads_that_cannot_be_rotated_are_refused():
    odd = {"width": 12, "num_heads": 2, "stages": [[2, 1]], "input_size": 4}
    assert validate(ModelConfig, odd).positions == "sincos"
    with refused("invalid-value"):
        validate(ModelConfig, odd | {"positions": "rope"})
