"""A run's checkpoints: what is in one, writing it while training goes on, reading it back, keeping the right ones."""

from __future__ import annotations

import json
import re
import shutil
import threading
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from mpdit_core.config import RunConfig, TrainConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import SHARDS, TRAINING, find_checkpoints, open_model, read_weights, save_model
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.files import write_text
from mpdit_core.training.state import sharded


@dataclass(frozen=True)
class Position:
    """Where a run stands. `skipped`: batches left out by rollbacks, as (first, one past the last) step numbers."""

    step: int = 0  # optimizer steps done
    images_seen: int = 0
    loss_mean: float | None = None  # of the sentinel
    skipped: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Snapshot:
    """All of a run at one moment, on the CPU: enough to go on bit for bit.

    `sharded`: weights and optimizer are this process's parts (DTensors); otherwise they are whole.
    """

    position: Position
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    averages: dict[float, dict[str, Tensor]]  # by decay, in the order of the configuration; always whole
    sharded: bool = False

    def training(self) -> dict[str, Tensor]:
        """Weights and optimizer under one roof of names."""
        weights = {f"weights.{n}": t for n, t in self.weights.items()}
        return weights | {f"optimizer.{n}": t for n, t in self.optimizer.items()}


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:07d}"


def write(run: Path, snapshot: Snapshot, *, config: RunConfig, latents: LatentSpec, shards: Path | None = None) -> Path:
    """Writes a checkpoint whole or not at all; raises `UserError` when the disk is full.

    Args:
        shards: folder that `sharded.write` has filled, beside the checkpoint's; it is moved into that.
    """
    first, *others = snapshot.averages
    folder = step_folder(run, snapshot.position.step)
    save_model(
        folder,
        snapshot.averages[first],
        config=config,
        latents=latents,
        step=snapshot.position.step,
        images_seen=snapshot.position.images_seen,
        extra={"position": asdict(snapshot.position)}
        | ({SHARDS: len(list(shards.glob("*.safetensors")))} if shards else {}),
        more_tensors=({} if shards else {TRAINING: snapshot.training()})
        | {f"ema-{d}.safetensors": snapshot.averages[d] for d in others},
        more_folders={SHARDS: shards} if shards else None,
    )
    return folder


def read(folder: Path) -> Snapshot:
    """The snapshot a checkpoint holds. Raises `UserError` when it lacks the training state."""
    opened = open_model(folder)
    parts = folder / SHARDS
    training = sharded.read(parts) if parts.is_dir() else read_weights(folder / TRAINING)
    first, *others = opened.config.train.ema_decays
    averages = {first: read_weights(folder / "model.safetensors")}
    averages |= {decay: read_weights(folder / f"ema-{decay}.safetensors") for decay in others}

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in training.items() if n.startswith(prefix)}

    return Snapshot(Position(**opened.extra["position"]), part("weights."), part("optimizer."), averages)


def remove_old(run: Path, train: TrainConfig) -> list[Path]:
    """Deletes all but the newest `keep_last` and every multiple of `keep_every`; returns what went."""
    complete, _ = find_checkpoints(run)
    gone = []
    for folder in complete[: -train.keep_last]:
        step = int(re.sub(r"\D", "", folder.name))
        if not (train.keep_every and step % train.keep_every == 0):
            shutil.rmtree(folder)
            gone.append(folder)
    return gone


class Writer:
    """Writes checkpoints in a thread, one at a time, so that training does not wait for the disk.

    The main process writes; of a sharded run each process its part, and the main one the rest when all have written.
    """

    def __init__(self, run: Path, *, config: RunConfig, latents: LatentSpec, world: World):
        self.run, self.config, self.latents, self.world = run, config, latents, world
        shares = config.train.parallel == "fsdp" and world.size > 1
        self._group = dist.new_group(backend="gloo") if shares else None  # apart from training's own messages
        self._thread: threading.Thread | None = None
        self._outcome: list[Path | BaseException | None] = []

    def start(self, snapshot: Snapshot) -> None:
        """Begins to write, unless this checkpoint is there. `finish` must have been called since the last start.

        All processes must call it.
        """
        assert self._thread is None
        wanted = self.world.is_main and not self.holds(snapshot.position.step)
        name = self.world.broadcast_object(uuid.uuid4().hex[:8] if wanted else None)
        if name is None or not (self.world.is_main or snapshot.sharded):
            return

        def work() -> None:
            try:
                self._outcome.append(self._write(snapshot, self.run / "checkpoints" / f".shards.{name}.part"))
            except BaseException as error:  # handed to `finish`
                self._outcome.append(error)

        self._thread = threading.Thread(target=work, name="checkpoint")  # not a daemon: it ends before the process
        self._thread.start()

    def _write(self, snapshot: Snapshot, shards: Path) -> Path | None:
        try:
            if snapshot.sharded:
                assert isinstance(self._group, dist.ProcessGroup)
                sharded.write(shards, snapshot.training(), group=self._group)
            if not self.world.is_main:
                return None
            path = write(
                self.run,
                snapshot,
                config=self.config,
                latents=self.latents,
                shards=shards if snapshot.sharded else None,
            )
            remove_old(self.run, self.config.train)
            return path
        finally:
            if self.world.is_main:
                shutil.rmtree(shards, ignore_errors=True)

    def newest(self) -> Path | None:
        """The run's newest complete checkpoint."""
        complete, _ = find_checkpoints(self.run)
        return complete[-1] if complete else None

    def holds(self, step: int) -> bool:
        """Whether the checkpoint of `step` is there already."""
        newest = self.newest()
        return newest == step_folder(self.run, step)

    @property
    def done(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def finish(self) -> Path | None:
        """Waits for the write under way; its folder, or None if there was none here. Raises what the write raised."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        outcome = self._outcome.pop(0)
        self._outcome.clear()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def truncate_metrics(path: Path, step: int) -> None:
    """Drops the lines of steps after `step` (and a torn last line), so that a resumed run writes them once."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue
    write_text(path, "".join(kept))  # whole or not at all: a kill here must not lose the lines


def check_same_data(saved: LatentSpec | None, given: LatentSpec) -> None:
    """Raises `UserError` when a run is resumed on other latents than it began with."""
    if saved is not None and saved.fingerprint != given.fingerprint:
        raise UserError(
            f"the latents in {given.folder} are not those this run was trained on",
            expected=f"fingerprint {saved.fingerprint[:12]}, not {given.fingerprint[:12]}",
            remedy="give the old folder with --latents, or begin another run (--init-from takes the weights along)",
        )
