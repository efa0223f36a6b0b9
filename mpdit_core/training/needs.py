"""What a training run will need: device memory and disk, estimated before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from mpdit_core.config import RunConfig
from mpdit_core.model.compute import parameter_count, tokens

FLOAT32 = 4
HALF = 2


@dataclass(frozen=True)
class Needs:
    """All in bytes; memory is that of one device holding the whole batch / (processes · accumulation)."""

    weights_bytes: int  # weights, gradients, AdamW's two moments and the averages
    activation_bytes_per_image: int
    memory_bytes: int
    checkpoint_bytes: int
    disk_bytes: int

    def rows(self) -> dict[str, str]:
        def gib(n: int) -> str:
            return f"{n / 2**30:.2f} GiB"

        return {
            "device memory": f"{gib(self.memory_bytes)} on one device: {gib(self.weights_bytes)} for weights, "
            f"gradients, optimizer and averages, {self.activation_bytes_per_image / 2**20:.0f} MiB an image",
            "disk": f"{gib(self.disk_bytes)} ({gib(self.checkpoint_bytes)} a checkpoint)",
        }


def estimate(config: RunConfig, *, total_steps: int, world_size: int = 1) -> Needs:
    """Estimates the needs of `config`."""
    train, model = config.train, config.model
    parameters = parameter_count(model)
    averages = len(train.ema_decays)
    weights = parameters * FLOAT32 * (4 + averages)
    per_image = activation_bytes(config)
    share = train.batch_size // (train.accumulation * world_size)
    checkpoint = parameters * FLOAT32 * (3 + averages)
    written = max(1, total_steps // train.checkpoint_every)
    kept = min(written, train.keep_last) + (total_steps // train.keep_every if train.keep_every else 0)
    return Needs(weights, per_image, weights + share * per_image, checkpoint, checkpoint * (kept + 1))


def activation_bytes(config: RunConfig) -> int:
    """Bytes that one image leaves behind for the backward pass.

    A block keeps, for every token: its two inputs and norms in float32 (4·D), and in the autocast type q, k, v, the
    mixed values, both branches' outputs and modulated inputs (8·D) and the MLP's hidden features twice (2·ratio·D).
    With activation checkpointing only its input (D, float32).
    """
    model, train = config.model, config.train
    narrow = FLOAT32 if train.precision == "float32" else HALF
    D, total = model.width, 0
    for count, stage in zip(tokens(model), model.stages, strict=True):
        if train.activation_checkpointing:
            total += stage.depth * count * D * FLOAT32
        else:
            total += stage.depth * count * D * (4 * FLOAT32 + (8 + 2 * model.mlp_ratio) * narrow)
    return total
