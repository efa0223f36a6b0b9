"""Models and samples measured against real images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.evaluation.compare import compare_records
    from mpdit_core.evaluation.job import evaluate, make_reference
    from mpdit_core.evaluation.options import EvaluateOptions
    from mpdit_core.evaluation.record import EvaluationRecord
    from mpdit_core.evaluation.reference import measure_reference, plan_reference
    from mpdit_core.evaluation.sweep import evaluate_sweep

__all__ = [
    "EvaluateOptions",
    "EvaluationRecord",
    "compare_records",
    "evaluate",
    "evaluate_sweep",
    "make_reference",
    "measure_reference",
    "plan_reference",
]

__getattr__ = lazy_names(
    __name__,
    {
        "compare": ["compare_records"],
        "job": ["evaluate", "make_reference"],
        "options": ["EvaluateOptions"],
        "record": ["EvaluationRecord"],
        "reference": ["measure_reference", "plan_reference"],
        "sweep": ["evaluate_sweep"],
    },
)
