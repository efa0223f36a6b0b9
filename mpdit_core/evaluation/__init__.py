"""Models and samples measured against real images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.evaluation.compare import Comparison, compare_records
    from mpdit_core.evaluation.job import check_features, evaluate, make_reference
    from mpdit_core.evaluation.options import EvaluateOptions, ReferenceResult
    from mpdit_core.evaluation.record import EvaluationRecord, read_records
    from mpdit_core.evaluation.reference import measure_reference, plan_reference
    from mpdit_core.evaluation.sweep import SweepResult, evaluate_sweep

__all__ = [
    "Comparison",
    "EvaluateOptions",
    "EvaluationRecord",
    "ReferenceResult",
    "SweepResult",
    "check_features",
    "compare_records",
    "evaluate",
    "evaluate_sweep",
    "make_reference",
    "measure_reference",
    "plan_reference",
    "read_records",
]

__getattr__ = lazy_names(
    __name__,
    {
        "compare": ["Comparison", "compare_records"],
        "job": ["check_features", "evaluate", "make_reference"],
        "options": ["EvaluateOptions", "ReferenceResult"],
        "record": ["EvaluationRecord", "read_records"],
        "reference": ["measure_reference", "plan_reference"],
        "sweep": ["SweepResult", "evaluate_sweep"],
    },
)
