"""Models on the disk: model folders, run folders, and models on the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.models.hub import download_model, upload_folder
    from mpdit_core.models.model_folder import (
        ModelFolder,
        find_checkpoints,
        load_model,
        open_model,
        read_weights,
        rebuild_positions,
        save_model,
    )
    from mpdit_core.models.run_folder import RunFolder

__all__ = [
    "ModelFolder",
    "RunFolder",
    "download_model",
    "find_checkpoints",
    "load_model",
    "open_model",
    "read_weights",
    "rebuild_positions",
    "save_model",
    "upload_folder",
]

__getattr__ = lazy_names(
    __name__,
    {
        "hub": ["download_model", "upload_folder"],
        "model_folder": [
            "ModelFolder", "find_checkpoints", "load_model", "open_model", "read_weights", "rebuild_positions",
            "save_model",
        ],
        "run_folder": ["RunFolder"],
    },
)  # fmt: skip
