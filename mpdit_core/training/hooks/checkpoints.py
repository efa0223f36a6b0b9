"""Writes a checkpoint every `train.checkpoint_every` steps, in a thread: training does not wait for the disk."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.reporting import Saved, Warning
from mpdit_core.runtime.concurrency import WriteBehind
from mpdit_core.training.hooks.metrics import StepMetrics
from mpdit_core.training.session import Session
from mpdit_core.training.state import checkpoints, sharded
from mpdit_core.training.state.checkpoints import Snapshot


class Checkpoints:
    """The checkpoints of a session; the context of its `writer` waits for the write under way.

    The main process writes. Of a sharded run each process writes its part, and the main one the rest when all have.
    """

    def __init__(self, session: Session, metrics: StepMetrics):
        self.session, self.metrics = session, metrics
        self.writer = WriteBehind("checkpoint")
        self._group: Any = None
        if session.trainer.model.sharded:
            import torch.distributed as dist

            self._group = dist.new_group(backend="gloo")  # apart from training's own messages

    def after(self, step: int) -> None:
        """Begins to write the checkpoint of `step`, where one is due."""
        if self.writer.is_done:
            self.wait()
        # the last step's is written, and waited for, by `save`
        if step % self.session.config.train.checkpoint_every == 0 and not self.session.is_finished:
            self.metrics.drain()
            self._start()

    def save(self) -> None:
        """Writes a checkpoint of this moment, unless it is there, and waits for it. All processes must call it.

        Raises:
            UserError: on every process, when it could not be written.
        """
        self.metrics.drain()
        self._start()
        path = self.session.world.on_main(self.writer.wait)
        self.writer.wait()  # of the other processes: their own parts
        self._report(path)

    def wait(self) -> None:
        """Ends the write under way. A full disk is reported, and the older checkpoints stay."""
        try:
            self._report(self.writer.wait())
        except UserError as error:
            text = f"the checkpoint could not be written, training continues, older checkpoints are kept: {error.what}"
            self.session.report(Warning(code="checkpoint-not-written", text=text))

    def newest(self) -> Path | None:
        """The run's newest complete checkpoint."""
        return next(reversed(self.session.run.checkpoints()), None)

    def _report(self, path: Path | None) -> None:
        if path is not None:
            self.session.report(Saved(what="checkpoint", path=path))

    def _start(self) -> None:
        """Begins to write a snapshot of this moment, unless its checkpoint is there."""
        self.wait()
        world, run = self.session.world, self.session.run
        snapshot = self.session.trainer.snapshot(whole=False)
        wanted = world.is_main and self.newest() != run.checkpoint(snapshot.position.step)
        name = world.broadcast_object(uuid.uuid4().hex[:8] if wanted else None)
        if name is not None and (world.is_main or snapshot.sharded):
            self.writer.submit(self._write, snapshot, run.path / "checkpoints" / f".shards.{name}.part")

    def _write(self, snapshot: Snapshot, shards: Path) -> Path | None:
        """Writes this process's part under `shards`, and in the main one the checkpoint; returns its folder."""
        session = self.session
        try:
            if snapshot.sharded:
                sharded.write(shards, snapshot.training(), group=self._group)
            if not session.world.is_main:
                return None
            folder = checkpoints.write(
                session.run,
                snapshot,
                config=session.config,
                latents=session.plan.latents.spec,
                shards=shards if snapshot.sharded else None,
            )
            checkpoints.remove_old(session.run, session.config.train)
            return folder
        finally:
            if session.world.is_main:
                shutil.rmtree(shards, ignore_errors=True)
