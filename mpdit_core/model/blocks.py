"""The transformer block and its modulation.

tokens [B, L, D], L class and image tokens together;    modulation: vectors [B, 1, D], B may be 1 (broadcast)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Modulation(NamedTuple):
    """The six vectors [B, 1, D] that steer a block, in the order the linear layer gives them."""

    shift_attention: Tensor
    scale_attention: Tensor
    gate_attention: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


class ModulationLayer(nn.Module):
    """`Linear(SiLU(cond))`: cond [B, D] -> `vectors` tensors [B, 1, D]."""

    def __init__(self, width: int, *, vectors: int):
        super().__init__()
        self.vectors = vectors
        self.linear = nn.Linear(width, vectors * width)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(cond))[:, None].chunk(self.vectors, dim=-1)


def modulated_norm(tokens: Tensor, *, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters (eps 1e-6, float32 under autocast), then scale and shift."""
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    return torch.addcmul(shift.to(normed.dtype), normed, 1 + scale.to(normed.dtype))


class Attention(nn.Module):
    """Multi-head self-attention through torch's fused kernels."""

    def __init__(self, *, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        B, L, D = tokens.shape
        q, k, v = (
            self.qkv(tokens).view(B, L, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        )  # each [B, heads, L, D/heads]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(B, L, D))


class MLP(nn.Module):
    """D -> ratio·D -> D with a tanh-GELU."""

    def __init__(self, *, width: int, ratio: int):
        super().__init__()
        self.up = nn.Linear(width, ratio * width)
        self.down = nn.Linear(ratio * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(tokens), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each normed, modulated and gated onto the residual (DiT's adaLN-Zero block).

    With `own_modulation` the block turns `cond` into its six vectors itself (DiT); without, it takes the network's
    shared ones (MPDiT, section 3.3).
    """

    def __init__(self, *, width: int, num_heads: int, mlp_ratio: int, own_modulation: bool):
        super().__init__()
        self.modulation = ModulationLayer(width, vectors=6) if own_modulation else None
        self.attention = Attention(width=width, num_heads=num_heads)
        self.mlp = MLP(width=width, ratio=mlp_ratio)

    def forward(self, tokens: Tensor, cond: Tensor, shared: Modulation | None) -> Tensor:
        m = shared if self.modulation is None else Modulation(*self.modulation(cond))
        assert m is not None, "a block without its own modulation needs the shared one"
        normed = modulated_norm(tokens, shift=m.shift_attention, scale=m.scale_attention)
        tokens = tokens + m.gate_attention * self.attention(normed)
        normed = modulated_norm(tokens, shift=m.shift_mlp, scale=m.scale_mlp)
        return tokens + m.gate_mlp * self.mlp(normed)
