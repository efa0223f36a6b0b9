"""What a training run will need, device memory and disk, estimated before it starts."""

from __future__ import annotations

from mpdit_core.config import NetworkType, RunConfig
from mpdit_core.model.compute import parameter_count
from mpdit_core.model.memory import Memory, optimizer_values, training_memory
from mpdit_core.models.ema_snapshots import STORED
from mpdit_core.training.options import ResourceEstimate
from mpdit_core.training.state.ema import averages_of, snapshot_interval

FLOAT32 = 4  # bytes


def min_memory(config: RunConfig, *, world_size: int) -> int:
    """Bytes that a process needs at least: for the weights, their gradients and averages, and its share of a batch."""
    model, train = config.model, config.train
    images = train.batch_size // world_size
    latents = 2 * images * model.channels * model.input_size.area  # and their noise
    return FLOAT32 * (parameter_count(model) * (2 + len(averages_of(train))) + latents)


def estimate(config: RunConfig, *, total_steps: int, world_size: int = 1) -> ResourceEstimate:
    """What `config` needs on each of `world_size` devices. For precision `auto`, the larger need of the two."""
    train = config.train
    averages = len(averages_of(train))
    share = train.batch_size // (train.accumulation * world_size)
    precisions: tuple[NetworkType, ...] = ("float32", "bfloat16") if train.precision == "auto" else (train.precision,)

    def memory(checkpointing: bool) -> Memory:
        found = (
            training_memory(
                config.model, share, precision=precision, ema_copies=averages, optimizer=train.optimizer.name,
                checkpointing=checkpointing,
            )
            for precision in precisions
        )  # fmt: skip
        return max(found, key=lambda memory: memory.total)

    needed = memory(train.activation_checkpointing)
    values = parameter_count(config.model) * (1 + averages) + optimizer_values(config.model, train.optimizer.name)
    checkpoint = FLOAT32 * values
    written = max(1, total_steps // train.checkpoint_every)
    snapshots = total_steps // snapshot_interval(train, total_steps) + 1
    snapshot = STORED.itemsize * parameter_count(config.model) * len(train.ema_widths)
    kept = min(written, train.keep_last) + (total_steps // train.keep_every if train.keep_every else 0)
    return ResourceEstimate(
        memory_bytes=needed.total,
        activation_bytes=needed.activations,
        switched_memory_bytes=memory(not train.activation_checkpointing).total,
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * (kept + 1) + snapshot * snapshots,  # + 1: old ones are deleted after a new one
    )
