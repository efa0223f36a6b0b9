"""What an export says about the latents of a model, without the paths of this machine."""

from __future__ import annotations

from pathlib import Path

from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import ModelFolder


def require_latents(model: ModelFolder) -> LatentSpec:
    """The description of the latents. Raises `UserError` (`no-autoencoder`) where there is none."""
    if model.latents is None:
        raise UserError(
            f"{model.path} does not state which autoencoder its latents belong to",
            code="no-autoencoder",
            expected="a model that was trained or imported with a description of its latents",
            remedy="--format mpdit, which needs none",
        )
    return model.latents


def publishable(latents: LatentSpec | None) -> LatentSpec | None:
    """The description of the latents without the folders that they and their images were in."""
    if latents is None:
        return None
    return latents.model_copy(update={"folder": "", "source": public_source(latents.source)})


def public_source(source: str) -> str:
    """The source without the folders above it, which stay private."""
    return Path(source).name if Path(source).is_absolute() else source
