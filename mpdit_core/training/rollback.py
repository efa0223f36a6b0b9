"""What a run does after a bad step: it records the images, then goes back and skips the batch, or stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mpdit_core.errors import UserError
from mpdit_core.reporting import Saved, Warning
from mpdit_core.runtime import files
from mpdit_core.training.batches import BatchSource
from mpdit_core.training.hooks.checkpoints import Checkpoints
from mpdit_core.training.hooks.metrics import BadStep, StepMetrics
from mpdit_core.training.session import Session
from mpdit_core.training.state.checkpoints import read_checkpoint

ROLLBACKS_IN_A_ROW = 5  # without a checkpoint in between


class Rollback:
    """Recovers from bad steps. If the run has no checkpoint, it keeps the state before the session's first step."""

    def __init__(self, session: Session, *, batches: BatchSource, checkpoints: Checkpoints, metrics: StepMetrics):
        self.session, self.batches, self.checkpoints, self.metrics = session, batches, checkpoints, metrics
        self.stops = session.config.train.on_nonfinite == "stop"
        self.start = None if self.stops or checkpoints.newest() else session.trainer.state()
        self.count, self.last_good = 0, -1  # rollbacks in a row to the same step

    def recover(self, bad: BadStep) -> None:
        """Goes back to the newest checkpoint and skips the batches up to the bad one. All processes must call it.

        Raises:
            UserError: the run is set to stop at a bad step, or has gone back too often (`diverged`).
        """
        self.checkpoints.wait()
        evidence = self._keep_evidence(bad)
        newest = self.session.world.on_main(self.checkpoints.newest)  # other processes may not see it yet
        good = read_checkpoint(newest) if newest and not self.stops else self.start
        self.count = self.count + 1 if good and good.position.step == self.last_good else 1
        if good is None or self.count > ROLLBACKS_IN_A_ROW:
            raise self._error(bad, evidence=evidence, kept=newest)
        self.last_good = good.position.step
        first, stop = good.position.data_step, bad.data_step + 1
        text = (
            f"step {bad.step}: {bad.what}; returning to step {self.last_good}, skipping batches {first} to {stop - 1}"
        )
        self.session.report(Warning(code="rolled-back", text=text))
        position = replace(good.position, skipped=(*good.position.skipped, (first, stop)))
        self.session.trainer.restore(replace(good, position=position))
        self.metrics.rewind()

    def _keep_evidence(self, bad: BadStep) -> Path:
        """Records which images were in this process's share of the batch."""
        name = f"bad-step-{bad.step:07d}-batch-{bad.data_step:07d}-rank{self.session.world.rank}.json"
        path = self.session.run.path / name
        indices = self.batches.indices(bad.data_step)
        record = {"step": bad.step, "what": bad.what, "learning_rate": bad.learning_rate, "indices": indices}
        try:
            files.write_json(path, record)
        except UserError as error:
            text = f"the list of images of the bad batch could not be written: {error.what}"
            self.session.report(Warning(code="evidence-not-written", text=text))
        else:
            self.session.report(Saved(what="bad batch", path=path))
        return path

    def _error(self, bad: BadStep, *, evidence: Path, kept: Path | None) -> UserError:
        run = self.session.run
        remedy = "look at those images; then start another run with a lower train.learning_rate or train.grad_clip=1.0"
        if kept:
            remedy += f" (--init-from {run} starts from these weights)"
        if self.stops:
            remedy += f", or skip these images: mpdit train --run {run} --set train.on_nonfinite=rollback"
        return UserError(
            f"stopped at step {bad.step}: {bad.what}",
            code="diverged",
            expected=f"finite numbers; {f'{kept} is kept' if kept else 'no checkpoint was written yet'}, the indices "
            f"of the images are in {evidence}",
            remedy=remedy,
        )
