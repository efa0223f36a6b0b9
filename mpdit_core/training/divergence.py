"""Detects a bad step by its numbers. What the run does then is in rollback.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

MEAN_DECAY = 0.99


@dataclass(kw_only=True, eq=False)
class BadStep(Exception):  # noqa: N818  # not an error: the run may go back and skip the batch
    """The loss or gradient of a step is not finite, or the loss is a spike. All processes raise it at once."""

    what: str  # in words
    step: int
    data_step: int  # number of its batch
    learning_rate: float


class DivergenceDetector:
    """Keeps a running mean of the loss and tells whether a step is bad.

    Args:
        spike_factor: a loss above this many times its running mean is a spike; None: only non-finite values count.
    """

    def __init__(self, spike_factor: float | None):
        self.spike_factor = spike_factor
        self.mean: float | None = None  # running mean of the loss

    def check(self, *, loss: float, grad_norm: float) -> str | None:
        """What is wrong, in words, or None. The loss of a good step enters the mean."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if self.spike_factor and self.mean is not None and loss > self.spike_factor * self.mean:
            return f"the loss jumped to {loss:.4g}, {loss / self.mean:.1f} times its running mean {self.mean:.4g}"
        self.mean = loss if self.mean is None else MEAN_DECAY * self.mean + (1 - MEAN_DECAY) * loss
        return None
