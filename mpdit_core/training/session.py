"""What the parts of one training session share: from a run's start, or its last checkpoint, to its end or a signal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from mpdit_core.config import RunConfig
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.reporting import Reporter
from mpdit_core.runtime.distributed import World
from mpdit_core.training.hooks.clock import WorkClock
from mpdit_core.training.setup import Plan
from mpdit_core.training.state.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Session:
    """A plan, the trainer that carries it out, and where: every part of the loop is made from this."""

    plan: Plan
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
