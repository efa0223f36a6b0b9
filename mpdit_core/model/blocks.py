"""The transformer block, its modulation, and the parts that switches replace.

tokens [B, L, D], L class and image tokens together;    modulation: vectors [B, 1, D], B may be 1 (broadcast)

To add a norm or an MLP: a function or class here, a row in `NORMS` or `MLPS`, its name in `ModelConfig`, and its
operations in compute.py and memory.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpdit_core.config import ModelConfig
from mpdit_core.model.attention import Attention


class Modulation(NamedTuple):
    """The six vectors [B, 1, D] that modulate a block, in the order of the linear layer's output."""

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


NORMS = {"layer": F.layer_norm, "rms": F.rms_norm}


def normalise(tokens: Tensor, norm: str) -> Tensor:
    """LayerNorm or RMSNorm of each token, without parameters (eps 1e-6)."""
    return NORMS[norm](tokens, tokens.shape[-1:], eps=1e-6)


def modulated_norm(tokens: Tensor, *, norm: str, shift: Tensor, scale: Tensor) -> Tensor:
    """The norm, in float32 like the tokens, then scale and shift."""
    normed = normalise(tokens, norm)
    return torch.addcmul(shift.to(normed.dtype), normed, 1 + scale.to(normed.dtype))


class GELUMLP(nn.Module):
    """D -> hidden -> D with a tanh-GELU."""

    def __init__(self, *, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(tokens), approximate="tanh"))


class SwiGLU(nn.Module):
    """D -> 2 × hidden, one half gating the other through a SiLU -> D (arXiv 2002.05202)."""

    def __init__(self, *, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, values = self.up(tokens).chunk(2, dim=-1)
        return self.down(F.silu(gate) * values)


MLPS = {"gelu": GELUMLP, "swiglu": SwiGLU}


class Block(nn.Module):
    """Attention and MLP, each with norm, modulation and a gated residual connection (DiT's adaLN-Zero block).

    With modulation per block it computes its six vectors from `cond` (DiT); otherwise it takes the shared ones (MPDiT,
    section 3.3).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = config.norm
        self.modulation = ModulationLayer(config.width, vectors=6) if config.modulation == "per-block" else None
        self.attention = Attention(config)
        self.mlp = MLPS[config.mlp](width=config.width, hidden=config.mlp_hidden)

    def forward(self, tokens: Tensor, cond: Tensor, shared: Modulation | None, rotations: Tensor | None) -> Tensor:
        m = shared if self.modulation is None else Modulation(*self.modulation(cond))
        assert m is not None, "a block without its own modulation needs the shared one"
        normed = modulated_norm(tokens, norm=self.norm, shift=m.shift_attention, scale=m.scale_attention)
        tokens = tokens + m.gate_attention * self.attention(normed, rotations)
        normed = modulated_norm(tokens, norm=self.norm, shift=m.shift_mlp, scale=m.scale_mlp)
        return tokens + m.gate_mlp * self.mlp(normed)
