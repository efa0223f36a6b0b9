"""Models and samples measured against real images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.evaluation.compare import Comparison, compare_records
    from mpdit_core.evaluation.job import evaluate, make_reference, require_features
    from mpdit_core.evaluation.options import EvaluateOptions, ReferenceResult
    from mpdit_core.evaluation.record import EvaluationRecord, is_sweep, read_records
    from mpdit_core.evaluation.reference import measure_reference, plan_reference
    from mpdit_core.evaluation.sweep import SweepResult, evaluate_sweep

__all__, __getattr__ = lazy_names(__name__, __file__)
