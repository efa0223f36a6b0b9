"""What a folder of latents says of itself, and the part of it (`LatentSpec`) that every model trained on it carries.

Torch-free, so that the CLI can read it at once. The numbers themselves are read by `mpdit_core/data/latents.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mpdit_core.config import Settings

PUBLISHED_MEAN = (5.81, 3.25, 0.12, -2.15)
PUBLISHED_STD = (4.17, 4.62, 3.71, 3.28)
"""The official code's constants for the SD autoencoder (measured elsewhere, on pixels in [0, 1]): only to repeat the
paper or to use its checkpoints."""


class AutoencoderSpec(Settings):
    """Which autoencoder made the latents; enough to decode them again and to notice another one."""

    id: str = Field(description="Hub id, local folder, `pixels` or `pixels-gray`")
    revision: str | None = Field(default=None, description="commit of a Hub id")
    sha256: str | None = Field(default=None, description="hash of the weights")
    factor: int = Field(description="pixels per latent pixel along a side")
    channels: int = Field(description="C of the latents")
    pixel_range: tuple[float, float] = Field(default=(-1.0, 1.0), strict=False, description="of the encoder's input")


class Normalisation(Settings):
    """`latents = (raw_latents - mean) / std`, per channel."""

    name: Literal["measured", "published", "none"]
    mean: tuple[float, ...] = Field(strict=False)
    std: tuple[float, ...] = Field(strict=False)


class LatentSpec(Settings):
    """What sampling and evaluation need to know of the training data; stored with every checkpoint."""

    resolution: int = Field(description="side of the images in pixels")
    autoencoder: AutoencoderSpec
    normalisation: Normalisation
    class_names: tuple[str, ...] = Field(strict=False, description="in label order")
    source: str = Field(description="what encode-latents was given")
    count: int = Field(description="images")
    folder: str = Field(default="", description="where the latents were, as an absolute path")
    fingerprint: str = Field(default="", description="of source, options and autoencoder")

    @property
    def latent_side(self) -> int:
        return self.resolution // self.autoencoder.factor
