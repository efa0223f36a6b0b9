"""Attention in bfloat16: torch's own values, and gradients by matrix products as close to float64's as torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mpdit_core.model.attention import LONGEST_BY_PRODUCTS, attend

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def values_and_gradients(attention: Attend, qkv: Tensor, d_mixed: Tensor) -> list[Tensor]:
    """The result for `qkv` [3, B, L, heads, d], and its gradients by q, k and v."""
    leaf = qkv.clone().requires_grad_()
    mixed = attention(*leaf.transpose(2, 3))
    (gradients,) = torch.autograd.grad(mixed, leaf, d_mixed.to(qkv.dtype))
    return [mixed.detach().double(), *gradients.double()]


@pytest.fixture(params=[1, 20, 272])
def inputs(request) -> tuple[Tensor, Tensor]:
    """Queries, keys and values whose scores have a standard deviation of 2, and a gradient of the result."""
    torch.manual_seed(request.param)
    qkv = torch.randn(3, 2, request.param, 3, 16) * torch.tensor([1.4, 1.4, 1.0]).view(3, 1, 1, 1, 1)
    return qkv.bfloat16(), torch.randn(2, 3, request.param, 16).bfloat16()


def test_values_are_those_of_the_fused_kernel(inputs):
    ours, fused = (values_and_gradients(f, *inputs)[0] for f in (attend, F.scaled_dot_product_attention))
    assert torch.equal(ours, fused)


def test_gradients_are_those_of_float64_to_the_last_digits_of_bfloat16(inputs):
    qkv, d_mixed = inputs
    exact = values_and_gradients(F.scaled_dot_product_attention, qkv.double(), d_mixed)
    for found, correct in zip(values_and_gradients(attend, qkv, d_mixed), exact, strict=True):
        assert (found - correct).norm() <= 0.02 * exact[-1].norm()


def test_float32_and_long_sequences_keep_the_fused_backward_pass():
    for dtype, length in ((torch.float32, 20), (torch.bfloat16, LONGEST_BY_PRODUCTS + 1)):
        q, k, v = (torch.randn(1, 1, length, 16, dtype=dtype, requires_grad=True) for _ in range(3))
        names = [f(q, k, v).grad_fn.name() for f in (attend, F.scaled_dot_product_attention)]
        assert names[0] == names[1]
