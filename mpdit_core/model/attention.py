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

MAX_TOKENS = 384  # whose backward pass is written here; from 512 on torch's own is as fast


class HeadNorm(nn.Module):
    """RMSNorm of queries or keys `[B, L, heads, d]` over the features of a head, with a learned scale (QK norm).

    It bounds the attention logits, which large models need in low precision (ViT-22B, arXiv 2302.05442).
    """

    def __init__(self, head_width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_width))

    def forward(self, heads: Tensor) -> Tensor:
        return F.rms_norm(heads, self.scale.shape, self.scale.to(heads.dtype), eps=1e-6)


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
    in_bfloat16_on_cpu = v.dtype == torch.bfloat16 and v.device.type == "cpu"
    if in_bfloat16_on_cpu and v.requires_grad and v.shape[-2] <= MAX_TOKENS:
        return CPUAttention.apply(q, k, v)[0]
    return F.scaled_dot_product_attention(q, k, v)


class CPUAttention(torch.autograd.Function):
    """The fused kernel, with a backward pass of batched matrix products, which are faster in bfloat16 on a CPU.

    Measured by benchmarks/attention.py. The backward pass of FlashAttention (arXiv 2205.14135, appendix B.4) subtracts
    the logarithm of the softmax's sum from the scores, and a sum from the gradients of the probabilities. Here further
    columns of the factors do that, because a product adds in float32: its small results lose little when they are
    rounded to bfloat16, and large scores would lose much.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The result [B, heads, L, d], and the logarithm of the softmax's sum [B, heads, L] in float32."""
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, d_mixed: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, mixed, log_sum = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        p = _products_minus(q, k, log_sum[..., None] / scale).mul_(scale).exp_()  # the probabilities, [B, heads, L, L]
        d_v = p.mT @ d_mixed
        means = (d_mixed.float() * mixed.float()).sum(dim=-1, keepdim=True)  # of the gradients, weighted by p
        d_scores = _products_minus(d_mixed, v, means).mul_(p)
        return scale * (d_scores @ k), scale * (d_scores.mT @ q), d_v


def _products_minus(rows: Tensor, columns: Tensor, subtracted: Tensor) -> Tensor:
    """rows columnsᵀ - subtracted: [..., L, d], [..., L, d] and float32 [..., L, 1] to bfloat16 [..., L, L].

    float32 has as many digits as three numbers in bfloat16.
    """
    parts = []
    for _ in range(3):
        parts.append(subtracted.to(rows.dtype))
        subtracted = subtracted - parts[-1].float()
    minus = -columns.new_ones(1).expand(*columns.shape[:-1], 3)
    return torch.cat([rows, *parts], dim=-1) @ torch.cat([columns, minus], dim=-1).mT
