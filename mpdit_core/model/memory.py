"""How much memory a model needs, in bytes, from its configuration alone; torch-free.

Activations are what the eager model saves for its backward pass, within 1 % of the tensors that autograd keeps (a test
compares them). torch.compile keeps less. Unused memory of the allocator, workspaces of kernels and torch itself (about
1 GB on a GPU) are not counted, so leave a tenth of the device free.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from mpdit_core.config import ModelConfig, NetworkType
from mpdit_core.model.compute import (
    FNO_GRID,
    FNO_LAYERS,
    FNO_MODES,
    FNO_WIDTH,
    image_tokens,
    measured_time_embedding_cost,
    parameter_count,
    tokens,
)
from mpdit_core.runtime import files

BLOCK_OVERHEAD = 2**15  # bytes of Python objects per block, whatever its width

MLP_MATRICES = {"gelu": 2, "swiglu": 3}  # of width × hidden features, in one block


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `weights`: in float32, and for bfloat16 products their copies."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def training_memory(
    config: ModelConfig,
    batch_size: int,
    *,
    precision: NetworkType = "bfloat16",
    ema_copies: int = 1,
    optimizer: str = "adamw",
    checkpointing: bool = False,
) -> Memory:
    """Memory of one training step of `batch_size` images on one device (one process).

    Args:
        batch_size: number of images computed together: those of one device and one accumulation part.
        optimizer: name of the optimizer.
        checkpointing: whether blocks are recomputed in the backward pass. Then only their inputs are kept, and all
            activations of one block at a time.
    """
    parameters = parameter_count(config)
    return Memory(
        weights=4 * parameters + _low_precision_copies(parameters, precision),
        gradients=4 * parameters,
        optimizer=4 * optimizer_values(config, optimizer),
        ema=4 * parameters * ema_copies,
        activations=batch_size * saved_activations(config, precision=precision, checkpointing=checkpointing),
    )


def optimizer_values(config: ModelConfig, optimizer: str) -> int:
    """Number of values that the optimizer keeps: two per parameter; one if Muon updates it (matrices of the blocks)."""
    matrices = config.depth * (4 * config.width**2 + MLP_MATRICES[config.mlp] * config.width * config.mlp_hidden)
    return 2 * parameter_count(config) - (matrices if optimizer == "muon" else 0)


def inference_memory(config: ModelConfig, batch_size: int, *, precision: NetworkType = "bfloat16") -> Memory:
    """Peak memory of one forward pass of `batch_size` rows; a guided image takes two rows.

    The peak is in an MLP of the longest stage: the residual stream, its normed copy, and the hidden layers.
    """
    parameters = parameter_count(config)
    row = max(tokens(config)) * (config.width * (4 + 4) + _hidden_values(config) * _bytes(precision))
    return Memory(
        weights=4 * parameters + _low_precision_copies(parameters, precision),
        gradients=0,
        optimizer=0,
        ema=0,
        activations=batch_size * row,
    )


def require_fit(config: ModelConfig) -> None:
    """Raises `UserError` (`too-large`) for a model that this machine's memory cannot hold, before it is built."""
    files.require_memory(
        4 * parameter_count(config, with_positions=True) + config.depth * BLOCK_OVERHEAD,
        what="a model of this shape",
        remedy="choose a smaller width, depth, input_size, or number of classes or class tokens",
    )


def saved_activations(config: ModelConfig, *, precision: NetworkType = "bfloat16", checkpointing: bool = False) -> int:
    """Bytes that the eager model keeps per image between forward and backward pass."""
    depths = [stage.depth for stage in config.stages]
    lengths = tokens(config)
    blocks = [_block(config, length, precision) for length in lengths]
    if checkpointing:
        kept = sum(depth * 4 * length * config.width for depth, length in zip(depths, lengths, strict=True))
        kept += max(blocks)
    else:
        kept = sum(depth * block for depth, block in zip(depths, blocks, strict=True))
    return kept + _outside_blocks(config, precision)


def _bytes(precision: NetworkType) -> int:
    return 2 if precision == "bfloat16" else 4


def _low_precision_copies(parameters: int, precision: NetworkType) -> int:
    return 2 * parameters if precision == "bfloat16" else 0  # the cast weights, kept for the backward pass


def _block(config: ModelConfig, length: int, precision: NetworkType) -> int:
    """One block: residual stream and norms in float32; q, k, v, inputs and outputs of attention and MLP as computed."""
    size = _bytes(precision)
    full = 4  # float32: the residual stream before each branch, each norm's output
    low = 3 + 1 + 2 + 2  # q, k, v; the attention's output; the input of each branch; its output before the gate
    if config.qk_norm or config.positions != "sincos":
        low += 2  # q and k as the attention takes them
    if config.qk_norm:
        full += 2 if precision == "float32" else 4  # q and k in float32, and normed; fused kernels keep less
    per_token = config.width * (full * 4 + low * size) + _hidden_values(config) * size
    per_token += 2 * _norm_bytes(config) + 4 * config.num_heads  # for the backward pass of norms and softmax
    per_token += 2 * 4 * config.num_heads if config.qk_norm else 0
    own_modulation = 6 * config.width * size if config.modulation == "per-block" else 0
    return length * per_token + 2 * 4 * config.width + own_modulation


def _hidden_values(config: ModelConfig) -> int:
    """Per token: the hidden layer before and after its GELU; or SwiGLU's gate and values, SiLU, and their product."""
    return {"gelu": 2, "swiglu": 4}[config.mlp] * config.mlp_hidden


def _norm_bytes(config: ModelConfig) -> int:
    """Per token: LayerNorm's mean and standard deviation, or RMSNorm's root mean square."""
    return {"layer": 8, "rms": 4}[config.norm]


def _outside_blocks(config: ModelConfig, precision: NetworkType) -> int:
    """Everything outside the blocks: entries of the stages, time embedding, head, loss."""
    size, width = _bytes(precision), config.width
    total = 0
    fine = image_tokens(config)
    for index, (stage, images) in enumerate(zip(config.stages, fine, strict=True)):
        patches = images * config.channels * stage.patch_size**2
        if index == 0:
            total += patches * size
            continue
        ratio = (config.stages[index - 1].patch_size // stage.patch_size) ** 2
        total += images // ratio * width * size  # the coarse tokens
        total += images * width * size  # before the GELU
        total += (images + config.class_tokens) * (width * (4 + size) + _norm_bytes(config))  # the norm
        total += (patches + images * width) * size if config.skip else 0
    last = fine[-1]
    total += last * (width * (8 + size) + _norm_bytes(config))  # the head's norm
    total += 4 * config.channels * config.input_size.area  # the loss
    if config.time_embedding == "fno":
        total += FNO_LAYERS * (2 * 4 * FNO_GRID * FNO_WIDTH + 8 * (FNO_MODES + 1) * FNO_WIDTH)
    elif config.time_embedding != "sinusoid":  # the sinusoid keeps a negligible amount
        total += measured_time_embedding_cost(config.time_embedding, width).saved_bytes
    return total + 8 * width * size
