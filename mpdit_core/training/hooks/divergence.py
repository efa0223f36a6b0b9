"""Watches loss and gradient norm: a run must not continue for hours after its numbers have gone bad."""

from __future__ import annotations

import math


class DivergenceDetector:
    """Keeps a running mean of the loss and names what is wrong with a step, if anything.

    Args:
        spike_factor: a loss above this many times its running mean is a spike; None: only non-finite values count.
    """

    DECAY = 0.99

    def __init__(self, spike_factor: float | None):
        self.spike_factor = spike_factor
        self.mean: float | None = None  # running mean of the loss

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
