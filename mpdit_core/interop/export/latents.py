"""The description of latents in an export, without paths of this machine."""

from __future__ import annotations

from pathlib import Path

from mpdit_core.data.manifest import LatentSpec

NEEDS_NO_LATENTS = "--format mpdit, which needs none"
"""The remedy for a model that does not describe its latents."""


def publishable(latents: LatentSpec | None) -> LatentSpec | None:
    """The description of the latents, without the folders of the latents and of their images."""
    if latents is None:
        return None
    return latents.model_copy(update={"folder": "", "source": public_source(latents.source)})


def public_source(source: str) -> str:
    """The source without the folders above it, which are private."""
    return Path(source).name if Path(source).is_absolute() else source
