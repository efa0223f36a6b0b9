"""Watches loss and gradient norm: a run must not go on for hours after its numbers have gone bad."""

from __future__ import annotations

import math
from pathlib import Path

from mpdit_core.config import TrainConfig
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import find_checkpoints


class Sentinel:
    """Keeps a running mean of the loss and names what is wrong with a step, if anything.

    Args:
        spike_factor: a loss above this many times its running mean is a spike; None: only non-finite values count.
        mean: the running mean to go on from, after a restart.
    """

    DECAY = 0.99

    def __init__(self, spike_factor: float | None, *, mean: float | None = None):
        self.spike_factor, self.mean = spike_factor, mean

    def check(self, *, loss: float, grad_norm: float) -> str | None:
        """What is wrong, in words, or None; a good step enters the mean."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if self.spike_factor and self.mean is not None and loss > self.spike_factor * self.mean:
            return f"the loss jumped to {loss:.4g}, {loss / self.mean:.1f} times its running mean {self.mean:.4g}"
        self.mean = loss if self.mean is None else self.DECAY * self.mean + (1 - self.DECAY) * loss
        return None


def bad_step_error(step: int, wrong: str, *, run: Path, evidence: Path, train: TrainConfig) -> UserError:
    """What a run that stops at a bad step says: what is kept, and what to try."""
    complete, _ = find_checkpoints(run)
    kept = f"{complete[-1]} is kept" if complete else "no checkpoint was written yet"
    another = "begin another run with a lower train.learning_rate or train.grad_clip=1.0"
    another += f" (--init-from {run} takes the weights along)" if complete else ""
    past = f"""go on past them: mpdit train --run {run} --set 'train.on_nonfinite="rollback"'"""
    ways = [f"look at those images; then {another}"] + ([past] if train.on_nonfinite == "stop" else [])
    return UserError(
        f"stopped at step {step}: {wrong}",
        expected=f"finite numbers; {kept}, the images' indices are in {evidence}",
        remedy=", or ".join(ways),
    )
