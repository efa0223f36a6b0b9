"""Options and results of `mpdit import` and `mpdit export`. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt, field_validator

from mpdit_core.config import EmaWidth
from mpdit_core.settings import DeviceOptions, Result, setting

PUBLISHED_AUTOENCODER = "stabilityai/sd-vae-ft-ema"
"""The autoencoder of all published models."""


class ImportOptions(DeviceOptions):
    """A checkpoint of the official MPDiT, DiT or SiT code."""

    file: Path = setting(
        ..., ".pt or .safetensors file of the official code", argument=True, metavar="FILE", strict=False
    )
    out: Path | None = setting(
        None, "model folder to write", metavar="DIR", panel="Output", strict=False, chosen="models/<name of the file>"
    )
    kind: Literal["auto", "mpdit", "dit", "sit"] = setting(
        "auto", "code that wrote the file; auto: recognised from its tensors"
    )
    num_heads: PositiveInt | None = setting(
        None, "number of attention heads, required if no published model has this width", chosen="by the width"
    )
    weights: Literal["ema", "model"] | None = setting(
        None, "name of the weights to import", chosen="ema, if there are any"
    )
    autoencoder: str = setting(
        PUBLISHED_AUTOENCODER, "autoencoder that decodes its latents: Hub id or folder", metavar="ID|DIR"
    )


class ImportResult(Result):
    """An imported model."""

    model: Path = setting(..., "the model folder")
    file: str = setting(..., "the file it came from")
    kind: str = setting(..., "the code that wrote it: mpdit, dit or sit")
    weights: str = setting(..., "the imported weights: ema, model, state_dict, or the only ones")
    prediction: str = setting(..., "velocity, or epsilon (which cannot be sampled here)")
    preset: str = setting(..., "the preset of its shape")
    config: dict[str, Any] = setting(..., "the model's configuration")
    autoencoder: str | None = setting(None, "autoencoder that decodes its latents")
    normalisation: str | None = setting(None, "normalisation of its latents")
    notes: dict[str, str] = setting({}, "notes about the conversion, by code")


class ExportOptions(DeviceOptions):
    """A model for others, or latents as a Hugging Face data set."""

    model: str = setting(
        ..., "run, checkpoint folder, exported model or hf:ORG/NAME; for datasets, a folder of latents",
        argument=True, metavar="MODEL",
    )  # fmt: skip
    out: Path = setting(..., "folder of the export", argument=True, metavar="OUT", strict=False)
    format: Literal["mpdit", "diffusers", "onnx", "torch-export", "space", "datasets"] = setting(
        "mpdit", "format of the export"
    )
    ema_width: EmaWidth | None = setting(
        None, "width (sigma_rel) of the EMA of the weights to export, made from a run's snapshots",
        chosen="the first EMA of the run",
    )  # fmt: skip
    half: bool = setting(False, "store the weights as float16")
    licence: str | None = setting(
        None, "licence of the weights, for the model card: its identifier on the Hub, such as cc-by-4.0",
        chosen="unknown", pattern=r"^[\w.+-]+$",
    )  # fmt: skip
    push: str | None = setting(None, "Hub repository to upload the export to", metavar="ORG/NAME", chosen="none")
    private: bool = setting(False, "make the Hub repository private")

    @field_validator("push")
    @classmethod
    def _repository(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            raise ValueError("expected ORG/NAME, the repository to create or to add to")
        return value


class ExportResult(Result):
    """A finished export."""

    path: Path = setting(..., "the folder")
    format: str = setting(..., "its format")
    bytes: int = setting(..., "its size")
    images: int | None = setting(None, "number of images in a data set")
    step: int | None = setting(None, "training step of the model")
    weights_sha256: str | None = setting(None, "hash of the model's weights")
    relative_difference: float | None = setting(
        None, "largest difference of a graph from the network, relative to the largest velocity"
    )
    url: str | None = setting(None, "its URL on the Hub")
