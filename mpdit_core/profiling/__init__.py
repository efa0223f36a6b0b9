"""Parameters, compute and memory of models: counts, comparisons, plans, searches and measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.profiling.job import profile_flops
    from mpdit_core.profiling.options import ProfileOptions
    from mpdit_core.profiling.results import Measurement, ModelCost, PartTime, ProfileResult, SearchResult
    from mpdit_core.profiling.tables import breakdown_table, facts, giga, millions, overview, plan_table

__all__, __getattr__ = lazy_names(__name__, __file__)
