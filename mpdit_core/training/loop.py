"""The training loop: from the trainer's step to the last one of the plan.

`StepMetrics` takes the numbers of every step; each other part in `hooks/` knows after which steps it acts. To add one:
a class with `after(step)` there, made in `TrainingLoop.__init__` and called in `_train`.
"""

from __future__ import annotations

import signal
from contextlib import closing

from mpdit_core.errors import Interrupted
from mpdit_core.flow.loss import needs
from mpdit_core.reporting import Note, Warning
from mpdit_core.runtime.signals import StopRequest
from mpdit_core.training.batches import BatchSource
from mpdit_core.training.hooks.checkpoints import Checkpoints
from mpdit_core.training.hooks.ema_snapshots import EmaSnapshots
from mpdit_core.training.hooks.evaluations import Evaluation
from mpdit_core.training.hooks.metrics import BadStep, StepMetrics
from mpdit_core.training.hooks.previews import Previews
from mpdit_core.training.rollback import Rollback
from mpdit_core.training.session import Session
from mpdit_core.training.trackers import Trackers


class TrainingLoop:
    """The parts of a session, and the order in which they act."""

    def __init__(self, session: Session, trackers: Trackers):
        self.session, self.trainer = session, session.trainer
        needed = needs(session.plan.terms)
        self.batches = BatchSource(session.plan.latents, session.config, session.world, needs=needed)
        self.metrics = StepMetrics(session, trackers)
        self.checkpoints = Checkpoints(session, self.metrics)
        self.ema_snapshots = EmaSnapshots(session, self.metrics)
        self.previews = Previews(session, self.metrics)
        self.evaluation = Evaluation(session, checkpoints=self.checkpoints, metrics=self.metrics)
        self.rollback = Rollback(session, batches=self.batches, checkpoints=self.checkpoints, metrics=self.metrics)

    def run(self) -> None:
        """Trains to the end and writes the last checkpoint.

        Raises:
            UserError: a bad step, where the run is set to stop (`diverged`); the last checkpoint or metrics cannot be
                written; the run's folder is gone.
            Interrupted: a process received a signal; a checkpoint was written.
        """
        self.metrics.rewind()
        with StopRequest() as stop, self.checkpoints.writer, self.ema_snapshots.writer:
            self.ema_snapshots.rewind()
            self.evaluation.run_missing()
            if self.session.is_finished:
                text = f"{self.session.run} has done all of its {self.session.step} steps; raise train.steps for more"
                self.session.report(Warning(code="nothing-to-train", text=text))
            while not (self.session.is_finished or self.metrics.stop_requested):
                try:
                    self._train(stop)
                except BadStep as bad:
                    self.rollback.recover(bad)
                    self.ema_snapshots.rewind()
            self.ema_snapshots.wait()
            self.checkpoints.save()
            self.session.world.on_main(self.metrics.write_unwritten)
        if self.metrics.stop_requested:
            self.session.report(Note(text=f"stopped after step {self.session.step}, which is saved"))
            raise Interrupted(stop.received or signal.SIGTERM)

    def _train(self, stop: StopRequest) -> None:
        """Trains until the last step or a signal. Raises `BadStep` on all processes at once."""
        first = self.trainer.position.data_step
        last = first + self.session.plan.total_steps - self.session.step
        with closing(self.batches.stream(first, last, device=self.session.device)) as stream:
            for data_step, batch in stream:
                rate = self.trainer.learning_rate
                numbers = self.trainer.step(batch)
                step = self.session.step
                self.metrics.take(numbers, data_step=data_step, learning_rate=rate, stopping=stop.received is not None)
                self.previews.after(step)
                self.ema_snapshots.after(step)
                self.checkpoints.after(step)
                self.evaluation.after(step)
                if self.metrics.stop_requested:
                    break
        self.metrics.drain()
