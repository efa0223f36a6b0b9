"""The network: a list of stages from coarse to fine. One class for DiT, SiT, MPDiT and MPDiT v2.

    x_t [B, C, h, w] · t [B] or [1], 1 noise, 0 data · labels [B], num_classes = null -> velocity [B, C, h, w]
    tokens [B, N, D] · class_tokens [B, M, D] (M may be 0) · cond [B, D]

Source: MPDiT (arXiv 2603.26357), section 3; the dense special case is DiT (arXiv 2212.09748).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mpdit_core.config import ModelConfig
from mpdit_core.config import Stage as StageConfig
from mpdit_core.model.blocks import Block, Modulation, ModulationLayer, modulated_norm
from mpdit_core.model.class_embedding import ClassEmbedding
from mpdit_core.model.initialize import initialize
from mpdit_core.model.memory import require_fit
from mpdit_core.model.positions import position_tables
from mpdit_core.model.time_embeddings import time_embedding
from mpdit_core.model.tokens import PatchEmbedding, Upsample, unpatchify


class MPDiT(nn.Module):
    """The velocity network of `config`, initialised as published.

    Raises:
        UserError: it does not fit into this machine's memory (`too-large`).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        require_fit(config)
        self.config = config
        self.time_embedding = time_embedding(config.time_embedding, config.width)
        self.class_embedding = ClassEmbedding(
            num_classes=config.num_classes, class_tokens=max(config.class_tokens, 1), width=config.width
        )
        shared = config.modulation == "shared"
        self.modulation = ModulationLayer(config.width, vectors=6) if shared else None
        coarser = [None, *config.stages]
        self.stages = nn.ModuleList(
            Stage(config, stage, coarser=before) for stage, before in zip(config.stages, coarser, strict=False)
        )
        self.head = Head(config)
        self.activation_checkpointing = False
        initialize(self, spectral_scale=config.spectral_init_scale)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        class_tokens, cond = self.embed(t, labels)
        shared = None if self.modulation is None else Modulation(*self.modulation(cond))
        tokens = None
        for stage in self.stages:
            class_tokens, tokens = stage(x_t, class_tokens, tokens, cond, shared, self.activation_checkpointing)
        patches = self.head(tokens, cond, shared)
        return unpatchify(patches, size=self.config.input_size, patch_size=self.config.stages[-1].patch_size)

    def compile_blocks(self) -> None:
        """Compiles block by block: one small graph a stage, which all its blocks share.

        Shapes are static. Left to itself, torch sees another number of tokens in the second stage and makes a graph for
        any number, which runs at less than half the speed.
        """
        for stage in self.stages:
            for block in stage.blocks:  # pyright: ignore[reportGeneralTypeIssues, reportAttributeAccessIssue]
                block.compile(dynamic=False)

    def embed(self, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """`class_tokens [B, M, D]` and `cond [B, D]` (or [1, D] when t is one time and classes are tokens)."""
        cond = self.time_embedding(t)
        embedded = self.class_embedding(labels)  # [B, max(M, 1), D]
        if self.config.class_tokens:
            return embedded, cond
        return embedded[:, :0], cond + embedded[:, 0]


class Stage(nn.Module):
    """Blocks at one patch size, and how tokens get there: from x_t in the first stage, from coarser tokens later.

    coarser: the stage before, None for the first.
    """

    positions: Tensor  # [N, D], fixed: neither trained nor saved
    rotations: Tensor | None  # [2, M+N, 1, d/2], likewise; None without rotary positions

    def __init__(self, config: ModelConfig, stage: StageConfig, *, coarser: StageConfig | None):
        super().__init__()
        width, first = config.width, coarser is None
        self.upsample = (
            None if coarser is None else Upsample(config, coarse_patch=coarser.patch_size, fine_patch=stage.patch_size)
        )
        reads_x_t = first or config.skip
        self.patch_embedding = (
            PatchEmbedding(patch_size=stage.patch_size, channels=config.channels, width=width) if reads_x_t else None
        )
        self.skip = nn.Linear(width, width) if reads_x_t and not first else None
        positions, rotations = position_tables(config, stage.patch_size)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("rotations", rotations, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(stage.depth))

    def forward(
        self,
        x_t: Tensor,
        class_tokens: Tensor,
        tokens: Tensor | None,
        cond: Tensor,
        shared: Modulation | None,
        checkpointing: bool = False,
    ) -> tuple[Tensor, Tensor]:
        class_tokens, tokens = self.enter(x_t, class_tokens, tokens)
        M = class_tokens.shape[1]
        both = torch.cat([class_tokens, tokens], dim=1) if M else tokens  # [B, M+N, D]
        for block in self.blocks:
            if checkpointing and self.training:
                both = checkpoint(block, both, cond, shared, self.rotations, use_reentrant=False)
            else:
                both = block(both, cond, shared, self.rotations)
        return both[:, :M], both[:, M:]

    def enter(self, x_t: Tensor, class_tokens: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens at this stage's patch size, positions added."""
        if self.upsample is None:
            assert self.patch_embedding is not None, "a first stage reads x_t"
            return class_tokens, self.patch_embedding(x_t) + self.positions
        assert tokens is not None, "only the first stage starts without tokens"
        class_tokens, fine = self.upsample(class_tokens, tokens)
        if self.patch_embedding is not None and self.skip is not None:
            fine = fine + self.skip(self.patch_embedding(x_t))
        return class_tokens, fine + self.positions  # float32 under autocast, and so the residual stream


class Head(nn.Module):
    """Norm, scale and shift, linear: tokens [B, N, D] -> patches [B, N, p·p·C].

    With shared modulation its scale and shift are those of the blocks' MLPs; otherwise it has its own layer.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        own = config.modulation == "per-block"
        self.modulation = ModulationLayer(config.width, vectors=2) if own else None
        self.norm = config.norm
        self.linear = nn.Linear(config.width, config.stages[-1].patch_size ** 2 * config.channels)

    def forward(self, tokens: Tensor, cond: Tensor, shared: Modulation | None) -> Tensor:
        if self.modulation is not None:
            shift, scale = self.modulation(cond)
        else:
            assert shared is not None
            shift, scale = shared.shift_mlp, shared.scale_mlp
        return self.linear(modulated_norm(tokens, norm=self.norm, shift=shift, scale=scale))
