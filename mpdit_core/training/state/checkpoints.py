"""A run's checkpoint on the disk: what is in it, and how it is written and read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mpdit_core.config import RunConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import SHARDS, TRAINING, WEIGHTS, ModelFolder, open_model, read_weights, save_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.settings import settings_error
from mpdit_core.training.state import sharded
from mpdit_core.training.state.ema import averages_of


@dataclass(frozen=True)
class Position:
    """How far a run is. `skipped`: batches left out by rollbacks, as (first, one past the last) batch numbers."""

    step: int = 0  # optimizer steps done
    images_seen: int = 0
    loss_mean: float | None = None  # running mean of the loss
    skipped: tuple[tuple[int, int], ...] = ()

    @property
    def data_step(self) -> int:
        """Number of the batch of the next step: the step, plus the batches that rollbacks left out."""
        return self.step + sum(stop - start for start, stop in self.skipped)


@dataclass(frozen=True)
class RunState:
    """The whole state of a run after a step, on the CPU: enough to resume bit for bit.

    `sharded`: weights and optimizer are this process's parts (DTensors), not whole tensors.
    """

    position: Position
    weights: dict[str, Tensor]  # all that is trained, as `ParallelModel.trained` names it
    optimizer: dict[str, Tensor]
    averages: dict[str, dict[str, Tensor]]  # by name, in the order of `averages_of`; always whole
    sharded: bool = False

    def training(self) -> dict[str, Tensor]:
        """Weights and optimizer in one dictionary, as one file holds them."""
        weights = {f"weights.{n}": t for n, t in self.weights.items()}
        return weights | {f"optimizer.{n}": t for n, t in self.optimizer.items()}


def write_checkpoint(
    run: RunFolder, state: RunState, *, config: RunConfig, latents: LatentSpec, shards: Path | None = None
) -> Path:
    """Writes a checkpoint whole or not at all; raises `UserError` when the disk is full.

    Args:
        shards: folder that `sharded.write` has filled; it is moved into the checkpoint.
    """
    first, *others = state.averages
    folder = run.checkpoint(state.position.step)
    parts = {SHARDS: len(list(shards.glob("*.safetensors")))} if shards else {}
    save_model(
        folder,
        state.averages[first],
        config=config,
        latents=latents,
        step=state.position.step,
        images_seen=state.position.images_seen,
        extra={"position": asdict(state.position), **parts},
        more={f"{name}.safetensors": state.averages[name] for name in others}
        | ({SHARDS: shards} if shards else {TRAINING: state.training()}),
    )
    return folder


def read_checkpoint(folder: Path) -> RunState:
    """The state that a checkpoint holds.

    Raises:
        UserError: it lacks the state of training, or a file of it is torn (`damaged-file`).
    """
    opened = open_model(folder)
    parts = folder / SHARDS
    training = sharded.read(parts) if parts.is_dir() else read_weights(folder / TRAINING)
    first, *others = (kind.name for kind in averages_of(opened.config.train))
    averages = {first: read_weights(folder / WEIGHTS)}
    averages |= {name: read_weights(folder / f"{name}.safetensors") for name in others}

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in training.items() if n.startswith(prefix)}

    return RunState(_position(opened), part("weights."), part("optimizer."), averages)


def _position(opened: ModelFolder) -> Position:
    try:
        position = TypeAdapter(Position).validate_python(opened.extra.get("position"))
    except ValidationError as error:
        raise _impossible(opened, settings_error(error).what) from None
    if position.step != opened.step or any(not 0 <= first <= stop for first, stop in position.skipped):
        raise _impossible(opened, "it is impossible")
    return position


def _impossible(opened: ModelFolder, what: str) -> UserError:
    return UserError(
        f"{opened.path}: the position of the run: {what}",
        code="damaged-file",
        expected=f"step {opened.step}, and pairs of batch numbers",
        remedy="remove this folder to continue from the checkpoint before it",
    )
