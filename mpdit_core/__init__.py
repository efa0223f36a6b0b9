"""The library behind `mpdit`. Importing it is cheap; torch is imported when one of these names needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names
from mpdit_core.version import __version__ as __version__

if TYPE_CHECKING:
    from mpdit_core.encoding import encode_latents
    from mpdit_core.evaluation import evaluate
    from mpdit_core.interop import MPDiTPipeline, export_model, import_checkpoint, import_official
    from mpdit_core.models.model_folder import load_model
    from mpdit_core.profiling import profile_flops
    from mpdit_core.samplers import load_sampler
    from mpdit_core.sampling import Generator, sample
    from mpdit_core.training import train

__all__, __getattr__ = lazy_names(__name__, __file__)
