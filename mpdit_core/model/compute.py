"""The cost of a model: parameters and multiply-accumulates (MACs) as exact integers, from its configuration alone.

Torch-free: `operations` lists every matrix product and every table of weights of the network, stage by stage, and
everything else here is a sum over that list. Tests compare the sums with a count of the real model on tensors without
data: they are equal for every preset and for random configurations.

What is counted: matrix products (linear layers, convolutions, attention, the FNO's spectral products), one MAC per
multiply-add; a product of two complex numbers counts as one MAC, as in torch's FLOP counter. Not counted, as is usual
in the field: biases, norms, activations, softmax, table look-ups and the FNO's 32-point FFTs.
FLOPs are 2 × MACs. What the papers call "GFLOPs" are giga-MACs of one forward pass of one image.

To add a part of the network: its operations below, in the order of the forward pass. A new time embedding needs no
entry: the cost of one that is not listed is measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mpdit_core.config import ModelConfig

if TYPE_CHECKING:
    from mpdit_core.model.time_embedding_cost import TimeEmbeddingCost

Convention = Literal["true", "paper"]
Kind = Literal["attention", "projections", "mlp", "upsampling", "patches", "conditioning", "time", "output"]
KINDS: dict[Kind, str] = {
    "attention": "the two products of the attention (QKᵀ and weights × V); the scales of a QK norm",
    "projections": "qkv and output projections of the attention",
    "mlp": "the two linear layers of a block's MLP",
    "upsampling": "linear layers between two stages",
    "patches": "patch embeddings and the skip's projection",
    "conditioning": "modulation layers and the class table",
    "time": "time embedding (FNO, or sinusoid and MLP)",
    "output": "the last linear layer",
}

PAPER_ATTENTION_TOKENS = 256
"""The papers count the attention of every block as if it ran on 256 tokens, in every stage."""

WHY_CONVENTIONS_DIFFER = (
    "paper: as published, attention counted as if every block had 256 tokens (too much for coarse stages, too little "
    "for fine ones), linear layers with their real number of tokens. true: the real number of tokens everywhere."
)

SINUSOID_FEATURES = 256
FNO_GRID, FNO_WIDTH, FNO_MODES, FNO_LAYERS = 32, 32, 16, 3


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One kind of layer, with all its repeats in a stage. `stage` is None for a layer outside the stages.

    `macs` are those of one forward pass of one image, `backward_macs` those of its backward pass: gradients of weights
    and, where an earlier layer needs them, of inputs, without recomputation.
    """

    stage: int | None
    kind: Kind
    name: str
    macs: int
    backward_macs: int
    parameters: int = 0


@dataclass(frozen=True)
class StageCount:
    """Totals of one stage. `tokens`: image tokens and class tokens, the length of its attention."""

    tokens: int
    macs: int
    parameters: int
    by_kind: dict[Kind, int]


@dataclass(frozen=True)
class Count:
    """The breakdown of one forward pass of one image. `parameters` are the trainable ones.

    `parameters_with_positions` adds the fixed sine-cosine tables, which the paper counts.
    """

    macs: int
    training_macs: int
    parameters: int
    parameters_with_positions: int
    stages: tuple[StageCount, ...]
    by_kind: dict[Kind, int]
    parameters_by_kind: dict[Kind, int]

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def linear_macs(self) -> int:
        return self.macs - self.by_kind["attention"]


def operations(config: ModelConfig, *, convention: Convention = "true") -> Iterator[Operation]:
    """Every matrix product and weight table of the network, in the order of the forward pass.

    Args:
        convention: `paper` counts attention as the publications do (see `WHY_CONVENTIONS_DIFFER`).
    """
    width, shared = config.width, config.modulation == "shared"
    yield from _time_embedding(config)
    table = (config.num_classes + 1) * max(config.class_tokens, 1) * width  # the last row is the null label
    yield Operation(stage=None, kind="conditioning", name="class table", macs=0, backward_macs=0, parameters=table)
    if shared:
        yield _linear(None, "conditioning", "shared modulation", rows=1, size=(width, 6 * width))
    for stage in range(len(config.stages)):
        yield from _entry(config, stage)
        yield from _blocks(config, stage, convention)
    if not shared:
        yield _linear(None, "conditioning", "output modulation", rows=1, size=(width, 2 * width))
    outputs = config.stages[-1].patch_size ** 2 * config.channels
    yield _linear(None, "output", "output linear", rows=image_tokens(config)[-1], size=(width, outputs))


def image_tokens(config: ModelConfig) -> list[int]:
    """Number of tokens per image at each stage."""
    return [(config.input_size // stage.patch_size).area for stage in config.stages]


def tokens(config: ModelConfig) -> list[int]:
    """Number of tokens in the attention of each stage: image tokens and class tokens."""
    return [n + config.class_tokens for n in image_tokens(config)]


def _linear(
    stage: int | None, kind: Kind, name: str, *, rows: int, size: tuple[int, int], repeats: int = 1, first: bool = False
) -> Operation:
    """`repeats` layers `size[0] → size[1]` with bias, each applied to `rows` vectors per image.

    Before a `first` layer there are no weights, so its inputs need no gradients.
    """
    inputs, outputs = size
    macs = repeats * rows * inputs * outputs
    backward_macs, parameters = macs if first else 2 * macs, repeats * (inputs + 1) * outputs
    return Operation(stage=stage, kind=kind, name=name, macs=macs, backward_macs=backward_macs, parameters=parameters)


def _time_embedding(config: ModelConfig) -> Iterator[Operation]:
    width = config.width
    if config.time_embedding == "sinusoid":
        yield _linear(None, "time", "sinusoid in", rows=1, size=(SINUSOID_FEATURES, width), first=True)
        yield _linear(None, "time", "sinusoid out", rows=1, size=(width, width))
    elif config.time_embedding == "fno":
        yield _linear(None, "time", "FNO lift", rows=FNO_GRID, size=(1, FNO_WIDTH), first=True)
        macs = FNO_LAYERS * FNO_MODES * FNO_WIDTH**2  # complex products
        yield Operation(
            stage=None, kind="time", name="FNO spectral", macs=macs, backward_macs=2 * macs, parameters=2 * macs
        )
        yield _linear(None, "time", "FNO pointwise", rows=FNO_GRID, size=(FNO_WIDTH, FNO_WIDTH), repeats=FNO_LAYERS)
        yield _linear(None, "time", "FNO out", rows=1, size=(FNO_WIDTH, width))
    else:
        cost = measured_time_embedding_cost(config.time_embedding, width)
        yield Operation(
            stage=None, kind="time", name=config.time_embedding, macs=cost.macs, backward_macs=cost.backward_macs,
            parameters=cost.parameters,
        )  # fmt: skip


def measured_time_embedding_cost(name: str, width: int) -> TimeEmbeddingCost:
    """The cost of a time embedding that is not listed above. Measuring it imports torch."""
    return importlib.import_module("mpdit_core.model.time_embedding_cost").measure(name, width)


def _entry(config: ModelConfig, stage: int) -> Iterator[Operation]:
    """The layers before a stage's blocks: patches of x_t in the first; upsampling and the skip in later ones."""
    width, patch_size, fine = config.width, config.stages[stage].patch_size, image_tokens(config)[stage]
    if stage > 0:
        group = (config.stages[stage - 1].patch_size // patch_size) ** 2  # fine tokens per coarse token
        yield _linear(stage, "upsampling", "expand", rows=fine // group, size=(width, width * group))
        yield _linear(stage, "upsampling", "refine", rows=fine + config.class_tokens, size=(width, width))
    if stage == 0 or config.skip:
        inputs = config.channels * patch_size**2
        yield _linear(stage, "patches", "patch embedding", rows=fine, size=(inputs, width), first=True)
    if stage > 0 and config.skip:
        yield _linear(stage, "patches", "skip projection", rows=fine, size=(width, width))


def _blocks(config: ModelConfig, stage: int, convention: Convention) -> Iterator[Operation]:
    width, depth, length = config.width, config.stages[stage].depth, tokens(config)[stage]
    if config.modulation == "per-block":
        yield _linear(stage, "conditioning", "block modulation", rows=1, size=(width, 6 * width), repeats=depth)
    yield _linear(stage, "projections", "qkv", rows=length, size=(width, 3 * width), repeats=depth)
    macs = depth * 2 * (PAPER_ATTENTION_TOKENS if convention == "paper" else length) ** 2 * width
    scales = depth * 2 * width // config.num_heads if config.qk_norm else 0
    yield Operation(
        stage=stage, kind="attention", name="attention", macs=macs, backward_macs=2 * macs, parameters=scales
    )
    yield _linear(stage, "projections", "projection", rows=length, size=(width, width), repeats=depth)
    columns = {"gelu": 1, "swiglu": 2}[config.mlp] * config.mlp_hidden
    yield _linear(stage, "mlp", "MLP in", rows=length, size=(width, columns), repeats=depth)
    yield _linear(stage, "mlp", "MLP out", rows=length, size=(config.mlp_hidden, width), repeats=depth)


def count(config: ModelConfig, *, convention: Convention = "true") -> Count:
    """The breakdown of one forward pass of one image, summed by stage and by kind of work."""
    whole = list(operations(config, convention=convention))
    by_kind, parameters_by_kind = _by_kind(whole, "macs"), _by_kind(whole, "parameters")
    stages = []
    for stage, length in enumerate(tokens(config)):
        here = [op for op in whole if op.stage == stage]
        inside = _by_kind(here, "macs")
        stages.append(StageCount(length, sum(inside.values()), sum(op.parameters for op in here), inside))
    macs, parameters = sum(by_kind.values()), sum(parameters_by_kind.values())
    positions = 0 if config.positions == "rope" else config.width * sum(image_tokens(config))
    return Count(
        macs=macs,
        training_macs=macs + sum(op.backward_macs for op in whole),
        parameters=parameters,
        parameters_with_positions=parameters + positions,
        stages=tuple(stages),
        by_kind=by_kind,
        parameters_by_kind=parameters_by_kind,
    )


def _by_kind(listed: Iterable[Operation], amount: Literal["macs", "parameters"]) -> dict[Kind, int]:
    sums: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    for op in listed:
        sums[op.kind] += getattr(op, amount)
    return sums


def forward_macs(config: ModelConfig, *, convention: Convention = "true") -> int:
    """MACs of one forward pass of one image."""
    return count(config, convention=convention).macs


def skip_tokens_macs(config: ModelConfig) -> int:
    """MACs that guidance `skip-tokens` adds for one image: the last stage and the output, without class tokens."""
    bare = config.model_copy(update={"class_tokens": 0})
    last, head = len(config.stages) - 1, ("output modulation", "output linear")
    return sum(op.macs for op in operations(bare) if op.stage == last or op.name in head)


def training_macs(config: ModelConfig) -> int:
    """MACs of the forward and backward pass of one image: three times the forward pass, less the gradients with
    respect to x_t and t, which are not computed. Recomputation (activation checkpointing, flash attention) is left out.
    """
    return count(config).training_macs


def parameter_count(config: ModelConfig, *, with_positions: bool = False) -> int:
    """Trainable parameters; `with_positions` adds the fixed position tables, as the paper counts."""
    counted = count(config)
    return counted.parameters_with_positions if with_positions else counted.parameters
