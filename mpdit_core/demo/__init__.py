"""The whole pipeline on real digits, in minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.demo.job import demo, real_digits
    from mpdit_core.demo.options import DemoOptions, DemoResult

__all__, __getattr__ = lazy_names(__name__, __file__)
