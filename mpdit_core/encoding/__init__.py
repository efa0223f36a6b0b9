"""From images to a folder of latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.encoding.job import encode_latents
    from mpdit_core.encoding.options import EncodeOptions, EncodeResult

__all__, __getattr__ = lazy_names(__name__, __file__)
