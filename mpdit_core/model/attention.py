"""Multi-head self-attention.

tokens [B, L, D]    heads of queries, keys or values [B, L, heads, d] with d = D / heads
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpdit_core.config import ModelConfig
from mpdit_core.model.positions import rotate

LONGEST_BY_PRODUCTS = 512  # tokens; longer ones gain nothing


class HeadNorm(nn.Module):
    """RMSNorm of queries or keys `[B, L, heads, d]` over the features of a head, with a learned scale (QK norm).

    It bounds the attention logits, which large models need in low precision (ViT-22B, arXiv 2302.05442).
    """

    def __init__(self, head_width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_width))

    def forward(self, heads: Tensor) -> Tensor:
        return F.rms_norm(heads, self.scale.shape, self.scale.type_as(heads), eps=1e-6)


class Attention(nn.Module):
    """Self-attention with a linear layer before it, for queries, keys and values, and one after it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = HeadNorm(width // self.num_heads) if config.qk_norm else None
        self.k_norm = HeadNorm(width // self.num_heads) if config.qk_norm else None
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, rotations: Tensor | None) -> Tensor:
        B, L, D = tokens.shape
        q, k, v = self.qkv(tokens).view(B, L, 3, self.num_heads, -1).unbind(2)  # each [B, L, heads, d]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        mixed = attend(*(heads.transpose(1, 2) for heads in (q, k, v)))  # [B, heads, L, d]
        return self.out(mixed.transpose(1, 2).reshape(B, L, D))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v by torch's fused kernel, each [B, heads, L, d]."""
    on_cpu_in_bfloat16 = v.device.type == "cpu" and v.dtype == torch.bfloat16
    if on_cpu_in_bfloat16 and v.requires_grad and v.shape[-2] <= LONGEST_BY_PRODUCTS:
        return _BackwardByProducts.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class _BackwardByProducts(torch.autograd.Function):
    """The fused kernel, and a backward pass of batched matrix products that computes the probabilities again.

    In bfloat16 on a CPU torch's own backward pass of short sequences takes 1.5 to 3 times as long
    (benchmarks/attention.py).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, v)
        ctx.save_for_backward(q, k, v, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, d_mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, mixed = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        probabilities = (scale * q @ k.mT).softmax(dim=-1)  # [B, heads, L, L]
        d_v = probabilities.mT @ d_mixed
        # the gradient of a softmax, p (dp - Σ p dp); the sum is also that of mixed · d_mixed (arXiv 2205.14135, B.4)
        d_scores = probabilities.mul_((d_mixed @ v.mT).sub_((d_mixed * mixed).sum(dim=-1, keepdim=True)))
        return scale * (d_scores @ k), scale * (d_scores.mT @ q), d_v
