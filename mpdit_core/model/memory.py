"""How much memory a model needs, in bytes, from its configuration alone; torch-free.

Activations are what the eager model saves for its backward pass, within 1 % of the tensors that autograd keeps (a test
compares them). torch.compile keeps less. Unused memory of the allocator, workspaces of kernels and torch itself (about
1 GB on a GPU) are not counted, so leave a tenth of the device free.
"""

from __future__ import annotations

from typing import NamedTuple

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

# of one value; of the weights of one parameter: in float32, and their copies for bfloat16 products
VALUE_BYTES: dict[NetworkType, int] = {"float32": 4, "bfloat16": 2}
WEIGHT_BYTES: dict[NetworkType, int] = {"float32": 4, "bfloat16": 4 + 2}

NORM_BYTES = {"layer": 8, "rms": 4}  # per token: mean and standard deviation, or root mean square
MLP_MATRICES = {"gelu": 2, "swiglu": 3}  # of width × hidden features, in one block
MLP_HIDDEN = {"gelu": 2, "swiglu": 4}  # hidden layers: before and after the GELU; gate and values, SiLU, product


class Memory(NamedTuple):
    """Bytes on one device."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    ema: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        return sum(self)


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
        weights=WEIGHT_BYTES[precision] * parameters,
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
    hidden = MLP_HIDDEN[config.mlp] * config.mlp_hidden * VALUE_BYTES[precision]
    row = max(tokens(config)) * (config.width * (4 + 4) + hidden)
    return Memory(weights=WEIGHT_BYTES[precision] * parameter_count(config), activations=batch_size * row)


def require_fit(config: ModelConfig) -> None:
    """Raises `UserError` (`too-large`) for a model that this machine's memory cannot hold, before it is built."""
    files.require_memory(
        4 * parameter_count(config, with_positions=True) + config.depth * BLOCK_OVERHEAD,
        what="a model of this shape",
        remedy="choose a smaller width, depth, input_size, or number of classes or class tokens",
    )


def saved_activations(config: ModelConfig, *, precision: NetworkType = "bfloat16", checkpointing: bool = False) -> int:
    """Bytes that the eager model keeps per image between forward and backward pass."""
    lengths = tokens(config)
    blocks = [_block(config, length, precision) for length in lengths]
    of_each = [4 * config.width * length for length in lengths] if checkpointing else blocks
    kept = sum(stage.depth * size for stage, size in zip(config.stages, of_each, strict=True))
    return kept + (max(blocks) if checkpointing else 0) + _outside_blocks(config, precision)


def _block(config: ModelConfig, length: int, precision: NetworkType) -> int:
    """One block: residual stream and norms in float32; q, k, v, inputs and outputs of attention and MLP as computed."""
    size = VALUE_BYTES[precision]
    full = 4  # float32: the residual stream before each branch, each norm's output
    low = 3 + 1 + 2 + 2  # q, k, v; the attention's output; the input of each branch; its output before the gate
    if config.qk_norm or config.positions != "sincos":
        low += 2  # q and k as the attention takes them
    if config.qk_norm:
        full += 2 if precision == "float32" else 4  # q and k in float32, and normed; fused kernels keep less
    per_token = config.width * (full * 4 + low * size) + MLP_HIDDEN[config.mlp] * config.mlp_hidden * size
    per_token += 2 * NORM_BYTES[config.norm] + 4 * config.num_heads  # for the backward pass of norms and softmax
    per_token += 2 * 4 * config.num_heads if config.qk_norm else 0
    own_modulation = 6 * config.width * size if config.modulation == "per-block" else 0
    return length * per_token + 2 * 4 * config.width + own_modulation


def _outside_blocks(config: ModelConfig, precision: NetworkType) -> int:
    """Everything outside the blocks: entries of the stages, time embedding, head, loss."""
    size, width, norm = VALUE_BYTES[precision], config.width, NORM_BYTES[config.norm]
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
        total += (images + config.class_tokens) * (width * (4 + size) + norm)  # the norm
        total += (patches + images * width) * size if config.skip else 0
    last = fine[-1]
    total += last * (width * (8 + size) + norm)  # the head's norm
    total += 4 * config.channels * config.input_size.area  # the loss
    if config.time_embedding == "fno":
        total += FNO_LAYERS * (2 * 4 * FNO_GRID * FNO_WIDTH + 8 * (FNO_MODES + 1) * FNO_WIDTH)
    elif config.time_embedding != "sinusoid":  # the sinusoid keeps a negligible amount
        total += measured_time_embedding_cost(config.time_embedding, width).saved_bytes
    return total + 8 * width * size
