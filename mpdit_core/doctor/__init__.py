"""Examines this machine and installation: what they can do, and what is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.doctor.job import diagnose
    from mpdit_core.doctor.options import Check, Diagnosis, DoctorOptions

__all__, __getattr__ = lazy_names(__name__, __file__)
