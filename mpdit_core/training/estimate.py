"""What a training run will need, device memory and disk, estimated before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from mpdit_core.config import RunConfig
from mpdit_core.model.compute import parameter_count
from mpdit_core.model.memory import Memory, Precision, training_memory

FLOAT32 = 4


@dataclass(frozen=True)
class Needs:
    """Memory of one device, and disk in bytes. `alternative` is the memory with activation checkpointing flipped."""

    memory: Memory
    alternative: Memory
    checkpointing: bool
    checkpoint_bytes: int
    disk_bytes: int

    def rows(self) -> dict[str, str]:
        """Labelled lines for people."""
        switched = "off" if self.checkpointing else "on"
        cost = "saves the second forward pass" if self.checkpointing else "at a third more computing"
        return {
            "device memory": f"{_gib(self.memory.total)}, {_gib(self.memory.activations)} of it activations",
            "with activation checkpointing " + switched: f"{_gib(self.alternative.total)}; {cost}",
            "disk": f"{_gib(self.disk_bytes)}, {_gib(self.checkpoint_bytes)} a checkpoint",
        }


def estimate(config: RunConfig, *, total_steps: int, precision: Precision, world_size: int = 1) -> Needs:
    """The needs of `config` on each of `world_size` devices, computing in `precision`."""
    train = config.train
    averages = len(train.ema_decays)
    share = train.batch_size // (train.accumulation * world_size)
    memory, alternative = (
        training_memory(config.model, share, precision=precision, ema_copies=averages, checkpointing=checkpointing)
        for checkpointing in (train.activation_checkpointing, not train.activation_checkpointing)
    )
    checkpoint = parameter_count(config.model) * FLOAT32 * (3 + averages)  # weights, two moments, averages
    written = max(1, total_steps // train.checkpoint_every)
    kept = min(written, train.keep_last) + (total_steps // train.keep_every if train.keep_every else 0)
    return Needs(memory, alternative, train.activation_checkpointing, checkpoint, checkpoint * (kept + 1))


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
