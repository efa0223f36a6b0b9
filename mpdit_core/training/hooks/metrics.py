"""Checks and logs the numbers of each step. A GPU's are read two steps later, so that the host never waits for it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mpdit_core.errors import UserError
from mpdit_core.model.compute import training_macs
from mpdit_core.reporting import Step, Warning
from mpdit_core.runtime.device import matmul_rate, peak_memory
from mpdit_core.training.session import Session
from mpdit_core.training.state.checkpoints import Position
from mpdit_core.training.trackers import Trackers

METRIC_LAG_STEPS = 2  # steps after which a GPU's loss is read
MEAN_DECAY = 0.99  # of the running mean of the loss
STOPPING = "stopping"  # the number that tells whether a process received a signal


@dataclass(kw_only=True, eq=False)
class BadStep(Exception):  # noqa: N818  # not an error: the run may go back and skip the batch
    """The loss or gradient of a step is not finite, or the loss is a spike. All processes raise it at once."""

    what: str  # in words
    step: int
    data_step: int  # number of its batch
    learning_rate: float


def what_is_wrong(*, loss: float, grad_norm: float, mean: float | None, spike_factor: float | None) -> str | None:
    """Why a step is bad, in words; None for a good one.

    Args:
        mean: running mean of the loss; None before the first step.
        spike_factor: a loss above this many times the mean is a spike; None: only non-finite values count.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    if spike_factor and mean is not None and loss > spike_factor * mean:
        return f"the loss jumped to {loss:.4g}, {loss / mean:.1f} times its running mean {mean:.4g}"
    return None


@dataclass(frozen=True)
class PendingStep:
    """A step whose numbers are still on the device."""

    position: Position  # after it
    data_step: int  # number of its batch
    learning_rate: float
    names: tuple[str, ...]  # of the numbers
    numbers: torch.Tensor  # loss, gradient norm, parts of the loss, stop requests; on the CPU once `ready`
    ready: torch.cuda.Event | None


class StepMetrics:
    """Takes the numbers of each step, and logs those of every `train.log_every`-th step.

    They are sent to metrics.jsonl, the trackers and the reporter. `stop_requested` is set when any process received a
    signal, on all processes after the same step.
    """

    def __init__(self, session: Session, trackers: Trackers):
        self.session, self.trackers = session, trackers
        self.lag = METRIC_LAG_STEPS if session.device.type == "cuda" else 0
        self.pending: deque[PendingStep] = deque()
        self.last: Step | None = None
        self.stop_requested = False
        self._unwritten: list[dict[str, Any]] = []  # lines that could not be written yet
        peak = matmul_rate(session.device, session.trainer.model.dtype, seconds=0.05) * session.world.size
        # at the rate of a matrix product
        self.ideal_seconds_per_image = 2 * training_macs(session.config.model) / peak

    def take(
        self, numbers: Mapping[str, torch.Tensor], *, data_step: int, learning_rate: float, stopping: bool
    ) -> None:
        """Takes the numbers of the last step, and reads those of an older one, as `_read` says.

        Args:
            numbers: of this process, on the device, as `Trainer.step` returns them.
            data_step: number of the batch.
            stopping: whether this process received a signal.

        Raises:
            BadStep: the older step was bad.
        """
        world, device, position = self.session.world, self.session.device, self.session.trainer.position
        means = torch.stack([*numbers.values(), torch.full((), float(stopping), device=device)])
        if world.size > 1:
            means /= world.size
            world.all_reduce(means)
        ready = None
        if device.type == "cuda":
            means, ready = means.to("cpu", non_blocking=True), torch.cuda.Event()
            ready.record()
        self.pending.append(PendingStep(position, data_step, learning_rate, (*numbers, STOPPING), means, ready))
        self._read(keep=self.lag)

    def drain(self) -> None:
        """Reads all pending numbers, and looks whether the run's folder is there; needed before anything that a bad
        step would spoil.

        Raises:
            BadStep: one of the steps was bad.
            UserError: the run's folder is gone.
        """
        self._read(keep=0)
        if self.session.world.is_main:
            self.session.run.require()

    def rewind(self) -> None:
        """Forgets everything after the trainer's position; called at the start of a session and after a rollback."""
        step = self.session.step
        self.pending.clear()
        self._unwritten = [line for line in self._unwritten if line["step"] <= step]
        if self.session.world.is_main:
            self.session.run.truncate_metrics(step)
        self.session.clock.restart(step)

    def write_line(self, values: dict[str, float], *, step: int) -> None:
        """Writes a line to metrics.jsonl and the trackers; one that cannot be written is kept for a later call.

        Raises:
            UserError: the run's folder is gone.
        """
        had_failed = bool(self._unwritten)
        self._unwritten.append({"step": step} | values)
        self.trackers.log(values, step=step)
        self.session.run.require()
        try:
            self.write_unwritten()
        except UserError as error:
            if not had_failed:
                text = f"the metrics from step {step} could not be written yet, training continues: {error.what}"
                self.session.report(Warning(code="metrics-not-written", text=text))

    def write_unwritten(self) -> None:
        """Writes the lines that could not be written before. Raises `UserError` when they still cannot."""
        if self._unwritten:
            self.session.run.append_metrics(*self._unwritten)
            self._unwritten.clear()

    def _read(self, *, keep: int) -> None:
        """Reads, in order, the numbers of all pending steps but the newest `keep`; waits for a GPU that computes them.

        Each good step moves the running mean of the loss in the trainer's position, which checkpoints store, and sets
        `stop_requested` where it was asked for; one that is due is logged.

        Raises:
            BadStep: one of the steps was bad.
        """
        train = self.session.config.train
        while len(self.pending) > keep:
            pending = self.pending.popleft()
            if pending.ready is not None:
                pending.ready.synchronize()
            parts = dict(zip(pending.names, pending.numbers.tolist(), strict=True))
            loss, grad_norm, stopping = (parts.pop(name) for name in ("loss", "grad_norm", STOPPING))
            step, rate, mean = pending.position.step, pending.learning_rate, self.session.trainer.position.loss_mean
            wrong = what_is_wrong(loss=loss, grad_norm=grad_norm, mean=mean, spike_factor=train.spike_factor)
            if wrong:
                raise BadStep(what=wrong, step=step, data_step=pending.data_step, learning_rate=rate)
            self.stop_requested |= stopping > 0
            self._note_loss(loss)
            if step % train.log_every == 0 or step == self.session.plan.total_steps:
                self._log_step(pending, loss=loss, grad_norm=grad_norm, parts=parts)

    def _note_loss(self, loss: float) -> None:
        """Moves the running mean of the loss."""
        position = self.session.trainer.position
        mean = position.loss_mean
        mean = loss if mean is None else MEAN_DECAY * mean + (1 - MEAN_DECAY) * loss
        self.session.trainer.position = replace(position, loss_mean=mean)

    def _log_step(self, pending: PendingStep, *, loss: float, grad_norm: float, parts: dict[str, float]) -> None:
        """Logs and reports a step with its speed since the last one; `parts` of the loss, by name."""
        step = pending.position.step
        speed = self.session.clock.lap(step) * self.session.config.train.batch_size
        values: dict[str, Any] = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": pending.learning_rate,
            "images_seen": pending.position.images_seen,
            "images_per_second": speed,
        }
        memory = float(peak_memory(self.session.device))
        measured = parts | {"mfu": speed * self.ideal_seconds_per_image, "memory_bytes": memory}
        self.last = Step(step=step, total_steps=self.session.plan.total_steps, **values, extra=measured)
        if self.session.world.is_main:
            self.write_line(values | measured, step=step)
        self.session.report(self.last)
