"""Writes the power-function averages every `train.ema_snapshot_every` steps and after the last, in a thread."""

from __future__ import annotations

from mpdit_core.errors import UserError
from mpdit_core.models.ema_snapshots import write_snapshot
from mpdit_core.reporting import Warning
from mpdit_core.runtime.concurrency import WriteBehind
from mpdit_core.training.hooks.metrics import StepMetrics
from mpdit_core.training.session import Session
from mpdit_core.training.state.ema import PowerAverage, snapshot_interval


class EmaSnapshots:
    """The snapshots of a session, which the main process writes; leaving the context of `writer` waits for the last."""

    def __init__(self, session: Session, metrics: StepMetrics):
        self.session, self.metrics = session, metrics
        self.writer = WriteBehind("ema")
        self.kinds = {i: kind for i, kind in enumerate(session.trainer.ema.kinds) if isinstance(kind, PowerAverage)}
        self.every = snapshot_interval(session.config.train, session.plan.total_steps)

    def after(self, step: int) -> None:
        """Begins to write the snapshot of `step`, where one is due. All processes must call it."""
        if self.writer.is_done:
            self.wait()
        if not self.kinds or step == 0 or (step % self.every and not self.session.is_finished):
            return
        self.metrics.drain()
        self.wait()
        ema, model = self.session.trainer.ema, self.session.trainer.model
        averages = {kind.width: model.whole(ema.state(i)) for i, kind in self.kinds.items()}
        if self.session.world.is_main:
            self.writer.submit(write_snapshot, self.session.run.ema_snapshot(step), averages)

    def rewind(self) -> None:
        """Deletes the snapshots after the session's step, and writes the one of this step if it is missing."""
        self.wait()
        step, run, world = self.session.step, self.session.run, self.session.world
        if world.is_main:
            run.remove_ema_snapshots(after=step)
        if world.on_main(lambda: step not in run.ema_snapshot_steps()):
            self.after(step)

    def wait(self) -> None:
        """Waits for the write in progress. A full disk is reported: models are then made of the other snapshots."""
        try:
            self.writer.wait()
        except UserError as error:
            text = f"the snapshot of the EMAs could not be written, training continues: {error.what}"
            self.session.report(Warning(code="ema-snapshot-not-written", text=text))
