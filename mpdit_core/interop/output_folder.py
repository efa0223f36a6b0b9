"""The check that import and export share: what they write goes into a folder of its own."""

from __future__ import annotations

from pathlib import Path

from mpdit_core.errors import UserError


def require_free(folder: Path) -> None:
    """Raises `UserError` (`folder-not-empty`) when `folder` holds something that writing there would destroy."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is not empty",
            code="folder-not-empty",
            expected="a new folder, so that nothing is lost",
            remedy="choose another folder, or remove this one first" if folder.is_dir() else "choose another folder",
        )
