"""How the learning rate changes with the step: a factor on its peak, which first rises in a linear warm-up.

To add one: a function below, its line in `SCHEDULES`, and its name in `TrainConfig.schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mpdit_core.config import TrainConfig


def learning_rate_factor(train: TrainConfig, step: int, *, total_steps: int) -> float:
    """The factor, above 0 and at most 1, of step `step` (from 0) of `total_steps`."""
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    return SCHEDULES[train.schedule](train, step, total_steps)


def constant(train: TrainConfig, step: int, total_steps: int) -> float:  # noqa: ARG001 - as the others
    """The peak until the end."""
    return 1.0


def cosine(train: TrainConfig, step: int, total_steps: int) -> float:
    """Half a cosine from the peak to 0 at the end (arXiv 1608.03983, one cycle)."""
    progress = (step - train.warmup_steps) / max(1, total_steps - train.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def wsd(train: TrainConfig, step: int, total_steps: int) -> float:
    """Warm-up, stable, decay (MiniCPM, arXiv 2404.06395, section 4): the peak, then linearly to 0 in `decay_steps`.

    A checkpoint from before the decay can be resumed with more steps, as if these had been planned from the start. The
    paper's decay is exponential, over a tenth of all steps.
    """
    decay_steps = train.decay_steps or max(1, total_steps // 10)
    return min(1.0, (total_steps - step) / decay_steps)


SCHEDULES: dict[str, Callable[[TrainConfig, int, int], float]] = {"constant": constant, "cosine": cosine, "wsd": wsd}
