"""Writes a checkpoint every `train.checkpoint_every` steps, in a thread: training does not wait for the disk."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import find_checkpoints
from mpdit_core.models.run_folder import step_of
from mpdit_core.reporting import Saved, Warning
from mpdit_core.runtime.concurrency import WriteBehind
from mpdit_core.training.hooks.metrics import StepMetrics
from mpdit_core.training.session import Session
from mpdit_core.training.state import sharded
from mpdit_core.training.state.checkpoints import RunState, write_checkpoint


class Checkpoints:
    """The checkpoints of a session; leaving the context of its `writer` waits for the write in progress.

    The main process writes. In a sharded run each process writes its part, and then the main one the rest.
    """

    def __init__(self, session: Session, metrics: StepMetrics):
        self.session, self.metrics = session, metrics
        self.writer = WriteBehind("checkpoint")
        self._group: Any = None
        if session.trainer.model.sharded:
            import torch.distributed as dist

            self._group = dist.new_group(backend="gloo")  # separate from the messages of training

    def after(self, step: int) -> None:
        """Begins to write the checkpoint of `step`, where one is due."""
        if self.writer.is_done:
            self.wait()
        # `save` writes the checkpoint of the last step, and waits for it
        if step % self.session.config.train.checkpoint_every == 0 and not self.session.is_finished:
            self._start()

    def save(self) -> None:
        """Writes the checkpoint of this step, unless it exists, and waits for it. All processes must call it.

        Raises:
            UserError: on every process, when it could not be written.
        """
        self._start()
        path = self.session.world.on_main(self.writer.wait)
        self.writer.wait()  # other processes: for their own parts
        self._report(path)

    def wait(self) -> None:
        """Waits for the write in progress. A full disk is reported, and the older checkpoints stay."""
        try:
            self._report(self.writer.wait())
        except UserError as error:
            text = f"the checkpoint could not be written, training continues, older checkpoints are kept: {error.what}"
            self.session.report(Warning(code="checkpoint-not-written", text=text))

    def newest(self) -> Path | None:
        """The run's newest complete checkpoint."""
        return next(reversed(find_checkpoints(self.session.run.path)[0]), None)

    def _report(self, path: Path | None) -> None:
        if path is not None:
            self.session.report(Saved(what="checkpoint", path=path))

    def _start(self) -> None:
        """Begins to write the checkpoint of this step, unless it exists."""
        self.metrics.drain()
        self.wait()
        world, run = self.session.world, self.session.run
        wanted = world.is_main and self.newest() != run.checkpoint(self.session.step)
        name = world.broadcast_object(uuid.uuid4().hex[:8] if wanted else None)
        if name is None:
            return
        state = self.session.trainer.state(whole=False)
        if world.is_main or state.sharded:
            self.writer.submit(self._write, state, run.path / "checkpoints" / f".shards.{name}.part")

    def _write(self, state: RunState, shards: Path) -> Path | None:
        """Writes this process's part under `shards`, and in the main one the checkpoint; returns its folder."""
        session = self.session
        try:
            if state.sharded:
                sharded.write(shards, state.training(), group=self._group)
            if not session.world.is_main:
                return None
            folder = write_checkpoint(
                session.run,
                state,
                config=session.config,
                latents=session.plan.latents.spec,
                shards=shards if state.sharded else None,
            )
            self._remove_old()
            return folder
        finally:
            if session.world.is_main:
                shutil.rmtree(shards, ignore_errors=True)

    def _remove_old(self) -> None:
        """Deletes all but the newest `keep_last` and every multiple of `keep_every`."""
        train = self.session.config.train
        for folder in find_checkpoints(self.session.run.path)[0][: -train.keep_last]:
            if not (train.keep_every and step_of(folder) % train.keep_every == 0):
                shutil.rmtree(folder, ignore_errors=True)  # a faulty disk is reported at the next write
