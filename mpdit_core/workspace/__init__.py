"""Lists what is under a folder: runs, latents, samples and evaluations, and which of them are damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.workspace.job import list_workspace
    from mpdit_core.workspace.options import Entry, Listing, ListOptions

__all__, __getattr__ = lazy_names(__name__, __file__)
