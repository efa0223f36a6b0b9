"""Attention in bfloat16 on a CPU: torch's own values, and gradients of our own within 1 % of float64's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mpdit_core.model.attention import MAX_TOKENS, attend


@pytest.fixture(params=[(1, 1.0), (20, 4.0), (272, 1.0), (272, 25.0)])
def qkv(request) -> Tensor:
    """Queries, keys and values [3, B, L, heads, d]; their scores have the standard deviation that is given."""
    length, deviation = request.param
    torch.manual_seed(length)
    made = torch.randn(3, 2, length, 3, 16)
    made[:2] *= deviation**0.5
    return made.bfloat16()


def gradients(attention, qkv: Tensor) -> Tensor:
    """Of q, k and v, in float64."""
    leaf = qkv.clone().requires_grad_()
    torch.manual_seed(1)
    mixed = attention(*leaf.transpose(2, 3))
    d_mixed = torch.randn(mixed.shape).bfloat16()
    return torch.autograd.grad(mixed, leaf, d_mixed.to(qkv.dtype))[0].double()


def test_values_are_those_of_the_fused_kernel(qkv):
    leaf = qkv.clone().requires_grad_()
    assert torch.equal(attend(*leaf.transpose(2, 3)), F.scaled_dot_product_attention(*qkv.transpose(2, 3)))


def test_gradients_are_those_of_float64_within_one_percent(qkv):
    """For small and for large scores; the error is at most about four times torch's own."""
    exact = gradients(F.scaled_dot_product_attention, qkv.double())
    ours, fused = (sizes(gradients(f, qkv) - exact) for f in (attend, F.scaled_dot_product_attention))
    size = sizes(exact).clamp(min=sizes(exact)[2] / 10)  # those of q and k are 0 for one token
    assert (ours <= 0.01 * size).all()
    assert (ours <= 4 * fused + 0.001 * size).all()


def sizes(gradients: Tensor) -> Tensor:
    """The norms of the gradients of q, k and v."""
    return gradients.flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    ("dtype", "length", "is_ours"),
    [(torch.bfloat16, MAX_TOKENS, True), (torch.bfloat16, MAX_TOKENS + 1, False), (torch.float32, 20, False)],
)
def test_which_backward_pass_is_ours(dtype, length, is_ours):
    q, k, v = (torch.randn(1, 1, length, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    assert ("CPUAttention" in type(attend(q, k, v).grad_fn).__name__) == is_ours
