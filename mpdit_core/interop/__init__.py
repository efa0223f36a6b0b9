"""`mpdit import` reads official checkpoints; `mpdit export` writes models and latents for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.interop.export.job import export_model
    from mpdit_core.interop.official.job import import_checkpoint, import_official
    from mpdit_core.interop.options import ExportOptions, ExportResult, ImportOptions, ImportResult
    from mpdit_core.interop.pipeline import MPDiTPipeline

__all__, __getattr__ = lazy_names(__name__, __file__)
