"""Describes a run on one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.run_report.job import write_report
    from mpdit_core.run_report.options import ReportOptions, ReportResult

__all__, __getattr__ = lazy_names(__name__, __file__)
