"""Training: from a configuration and a folder of latents to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.training.job import train
    from mpdit_core.training.options import DryRunResult, TrainOptions, TrainResult
    from mpdit_core.training.sweep import Cell, Statistics, TrainSweepResult, is_sweep_folder, train_sweep

__all__, __getattr__ = lazy_names(__name__, __file__)
