"""The network: a list of stages from coarse to fine. One class for DiT, SiT, MPDiT and MPDiT v2.

    x_t [B, C, h, w] · t [B] or [1], 1 noise, 0 data · labels [B], num_classes = null -> velocity [B, C, h, w]
    tokens [B, N, D] · class_tokens [B, M, D] (M may be 0) · cond [B, D]

Source: MPDiT (arXiv 2603.26357), section 3; with one stage it is DiT (arXiv 2212.09748).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from mpdit_core.config import ModelConfig
from mpdit_core.config import Stage as StageConfig
from mpdit_core.model.blocks import Block, Modulation, ModulationLayer, modulated_norm
from mpdit_core.model.memory import require_fit
from mpdit_core.model.positions import position_table, rotation_table
from mpdit_core.model.time_embeddings import time_embedding
from mpdit_core.model.tokens import ClassEmbedding, PatchEmbedding, Upsample, unpatchify

MAX_COMPILED = 64  # graphs of torch.compile for one block, which are not CUDA graphs
MIN_TIME = 0.05  # lower bound of t, by which x_t - predicted latents is divided (JiT, arXiv 2511.13720)


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
        self.class_embedding = ClassEmbedding(config)
        shared = config.modulation == "shared"
        self.modulation = ModulationLayer(config.width, vectors=6) if shared else None
        coarser = [None, *config.stages]
        self.stages = nn.ModuleList(
            Stage(config, stage, coarser=before) for stage, before in zip(config.stages, coarser, strict=False)
        )
        self.head = Head(config)
        self.activation_checkpointing = False
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Starting values as the official code has them (the paper's appendix); the output layer begins at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.time_embedding.initialize(spectral_scale=self.config.spectral_init_scale)  # pyright: ignore[reportCallIssue]
        nn.init.normal_(self.class_embedding.table.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, ModulationLayer):
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.head.linear.weight)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.last_stage(x_t, t, *self.coarse_stages(x_t, t, labels))

    def coarse_stages(
        self, x_t: Tensor, t: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, Modulation | None]:
        """All but the last stage: class tokens, tokens (None for a single stage), cond and shared modulation."""
        class_tokens, cond = self.embed(t, labels)
        shared = None if self.modulation is None else Modulation(*self.modulation(cond))
        tokens = None
        *coarse, _ = self.stages
        for stage in coarse:
            class_tokens, tokens = stage(x_t, class_tokens, tokens, cond, shared, self.activation_checkpointing)
        return class_tokens, tokens, cond, shared

    def last_stage(
        self, x_t: Tensor, t: Tensor, class_tokens: Tensor, tokens: Tensor | None, cond: Tensor,
        shared: Modulation | None,
    ) -> Tensor:  # fmt: skip
        """The velocity. `class_tokens` may be [B, 0, D], for guidance that skips them."""
        _, tokens = self.stages[-1](x_t, class_tokens, tokens, cond, shared, self.activation_checkpointing)
        patches = self.head(tokens, cond, shared)
        output = unpatchify(patches, size=self.config.input_size, patch_size=self.config.stages[-1].patch_size)
        if self.config.prediction == "latents":
            return (x_t - output) / t.clamp(min=MIN_TIME).view(-1, 1, 1, 1)
        return output

    def compile_blocks(self) -> None:
        """Compiles block by block: one small graph per stage, which all its blocks share.

        Shapes are static. Stages differ in the number of tokens, for which torch would by default compile one graph for
        any number; that graph has less than half the speed. So there is one graph for each stage, batch size (guided or
        not, last block or not) and shape of t ([1] or [B]), with and without gradients: 48 at most with three stages.
        Beyond `MAX_COMPILED` (torch's own limit is 8) a block runs eagerly.
        """
        options: dict[str, Any] = {}
        if "recompile_limit" in inspect.signature(torch.compile).parameters:  # then the global limit is one thread's
            options["recompile_limit"] = MAX_COMPILED
        else:
            torch._dynamo.config.recompile_limit = MAX_COMPILED
        for stage in self.stages:
            for block in stage.get_submodule("blocks").children():
                block.compile(dynamic=False, **options)

    def embed(self, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """`class_tokens [B, M, D]` and `cond [B, D]` (or [1, D] when t is one time and classes are tokens)."""
        cond = self.time_embedding(t)
        embedded = self.class_embedding(labels)  # [B, max(M, 1), D]
        if self.config.class_tokens:
            return embedded, cond
        return embedded[:, :0], cond + embedded[:, 0]


def without_values(config: ModelConfig) -> MPDiT:
    """The network with its positions, but with uninitialised weights, to load a state into.

    Random weights would take as long as loading; the device "meta" would take seconds for its imports.
    """
    with _NoInitialisation():
        return MPDiT(config)


class _NoInitialisation(TorchFunctionMode):
    """Skips every operation that would write starting values."""

    IN_PLACE = (Tensor.normal_, Tensor.uniform_, Tensor.zero_)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.IN_PLACE or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


class Stage(nn.Module):
    """Blocks at one patch size, and how tokens get there: from x_t in the first stage, from coarser tokens later.

    coarser: the stage before, None for the first.
    """

    positions: Tensor  # [N, D], fixed: neither trained nor saved; zeros [1, D] where only rotations are used
    rotations: Tensor | None  # [2, M+N, 1, d/2], likewise; None without rotary positions

    def __init__(self, config: ModelConfig, stage: StageConfig, *, coarser: StageConfig | None):
        super().__init__()
        width, first = config.width, coarser is None
        self.upsample = None if coarser is None else Upsample(config, coarser.patch_size, stage.patch_size)
        reads_x_t = first or config.skip
        self.patch_embedding = PatchEmbedding(config, stage.patch_size) if reads_x_t else None
        self.skip = nn.Linear(width, width) if reads_x_t and not first else None
        grid, coding = config.input_size // stage.patch_size, config.positions
        positions = torch.zeros(1, width) if coding == "rope" else position_table(width, grid)
        rotations = None if coding == "sincos" else rotation_table(config, stage.patch_size)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("rotations", rotations, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(stage.depth))

    def forward(
        self, x_t: Tensor, class_tokens: Tensor, tokens: Tensor | None, cond: Tensor, shared: Modulation | None,
        checkpointing: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        class_tokens, tokens = self.enter(x_t, class_tokens, tokens)
        M = class_tokens.shape[1]
        both = torch.cat([class_tokens, tokens], dim=1) if M else tokens  # [B, M+N, D]
        rotations = None if self.rotations is None else self.rotations[:, -both.shape[1] :]  # M may be 0
        for block in self.blocks:
            if checkpointing and self.training:
                both = checkpoint(  # blocks draw no random numbers, whose state could not be recorded
                    block, both, cond, shared, rotations, use_reentrant=False, preserve_rng_state=False
                )
            else:
                both = block(both, cond, shared, rotations)
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
        return class_tokens, fine + self.positions  # float32 also under autocast, as is the residual stream


class Head(nn.Module):
    """Norm, scale and shift, linear: tokens [B, N, D] -> patches [B, N, p·p·C].

    With shared modulation it uses the shift and scale of the blocks' MLPs; otherwise it has its own layer.
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
