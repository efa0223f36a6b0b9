"""What the parts of one training session share. A session ends at the run's last step or at a signal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from mpdit_core.config import RunConfig
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.reporting import Reporter
from mpdit_core.runtime.distributed import World
from mpdit_core.training.setup import RunPlan
from mpdit_core.training.state.trainer import Trainer


class WorkClock:
    """Measures the steps per second of training itself, without pauses. `now` gives seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins a new window at `step`."""
        self._begun, self._step, self._idle = self._now(), step, 0.0

    def lap(self, step: int) -> float:
        """Steps per second since the window began; begins a new one."""
        seconds = self._now() - self._begun - self._idle
        steps = step - self._step
        self.restart(step)
        return steps / max(seconds, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context for work that is not training: previews and evaluations. Its time is not counted."""
        begun = self._now()
        try:
            yield
        finally:
            self._idle += self._now() - begun


@dataclass(frozen=True, kw_only=True)
class Session:
    """A plan, its trainer, device and processes. Every part of the loop is made from a session."""

    plan: RunPlan
    trainer: Trainer
    device: torch.device
    world: World
    report: Reporter
    clock: WorkClock = field(default_factory=WorkClock)

    @property
    def config(self) -> RunConfig:
        return self.plan.config

    @property
    def run(self) -> RunFolder:
        return self.plan.run

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.trainer.position.step

    @property
    def is_finished(self) -> bool:
        return self.step >= self.plan.total_steps
