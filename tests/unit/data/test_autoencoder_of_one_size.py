"""An autoencoder that takes images of one size alone: what it is tried on to choose its type must have that size."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from data_helpers import image_folder
from torch import nn
from torch.nn import functional

from mpdit_core.data.autoencoders import LoadedAutoencoder
from mpdit_core.data.manifest import AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.data.sources import open_source
from mpdit_core.encoding import plan as encoding_plan
from mpdit_core.sampling import decode_precision
from mpdit_core.size import Size

SIDE, FACTOR = 192, 8


class OneSize:
    """Scales whatever it gets to 192 pixels, as some networks of diffusers do."""

    channels, factor, resolution = 3, FACTOR, SIDE
    stores: Literal["mean"] = "mean"

    def load(self, device: torch.device) -> None:
        self.network = nn.Linear(2, 2).to(device)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return functional.adaptive_avg_pool2d(images.float() / 127.5 - 1, SIDE // FACTOR)

    def decode(self, raw_latents: torch.Tensor) -> torch.Tensor:
        return (functional.interpolate(raw_latents, (SIDE, SIDE)) * 127.5 + 128).clamp(0, 255).to(torch.uint8)

    def fingerprint(self) -> str:
        return "one size"


@pytest.fixture
def autoencoder() -> LoadedAutoencoder:
    plugin = OneSize()
    plugin.load(torch.device("cpu"))
    spec = AutoencoderSpec(id="one-size", factor=FACTOR, channels=3, stores="mean", resolution=SIDE)
    return LoadedAutoencoder(plugin, spec=spec, device=torch.device("cpu"))


def test_its_encoder_is_tried_at_its_size(autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoding_plan, "MIN_PARAMETERS", 1)
    source = open_source(str(image_folder(tmp_path / "images")))
    chosen = encoding_plan.choose_precision("auto", autoencoder, source, resolution=Size.square(SIDE))
    assert chosen in ("float32", "bfloat16")


def test_its_decoder_is_tried_at_its_size(autoencoder):
    spec = LatentSpec(
        resolution=Size.square(SIDE), autoencoder=autoencoder.spec, class_names=(), source="", count=0,
        normalisation=Normalisation(name="none", mean=(0.0,) * 3, std=(1.0,) * 3),
    )  # fmt: skip
    assert decode_precision.choose_decode_precision("bfloat16", autoencoder, spec) in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("factor", "only", "resolution", "tried"),
    [(8, None, (256, 256), (128, 128)), (8, None, (64, 256), (64, 128)), (14, None, (224, 224), (126, 126)),
     (8, 256, (256, 256), (256, 256)), (256, None, (512, 512), (256, 256))],
)  # fmt: skip
def test_others_are_tried_on_whole_latent_pixels(factor: int, only: int | None, resolution, tried):
    spec = AutoencoderSpec(id="a", factor=factor, channels=4, resolution=only)
    assert spec.trial_size(Size(*resolution), 128) == tried
