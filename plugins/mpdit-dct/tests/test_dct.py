"""The transform keeps the contract, is orthonormal, and loses as little of photos as the README says."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from mpdit_dct import DCT
from PIL import Image

from mpdit_core.api import UserError, to_range
from mpdit_core.testing import check_autoencoder


def made(**options) -> DCT:
    plugin = DCT(**options)
    plugin.load(torch.device("cpu"))
    return plugin


def noise(side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("factor", "channels"), [(4, 3), (4, 16), (4, 47), (8, 12), (8, 48)])
def test_keeps_the_contract(factor: Literal[4, 8], channels: int):
    check_autoencoder(DCT(factor=factor, channels=channels), psnr=20)


@pytest.mark.parametrize("factor", [4, 8])
def test_with_all_coefficients_nothing_is_lost(factor: int):
    plugin, images = made(factor=factor, channels=3 * factor**2), noise()
    latents = plugin.encode(images)
    assert (plugin.decode(latents).int() - images.int()).abs().max() <= 1
    ycbcr = torch.einsum("dc,bchw->bdhw", plugin.colours, to_range(images))
    assert torch.allclose(latents.square().sum(), ycbcr.square().sum(), rtol=1e-5)  # orthonormal: Parseval


def test_the_first_channel_is_the_mean_luminance():
    plugin, images = made(factor=8, channels=12), noise()
    luminance = torch.einsum("c,bchw->bhw", plugin.colours[0], to_range(images))
    means = torch.nn.functional.avg_pool2d(luminance, 8)
    assert torch.allclose(plugin.encode(images)[:, 0], 8 * means, atol=1e-5)


def test_a_grey_picture_has_no_chrominance():
    grey = noise()[:, :1].expand(-1, 3, -1, -1)
    assert made(factor=4, channels=16).encode(grey)[:, 12:].abs().max() < 1e-4


def test_too_many_channels_are_refused():
    from mpdit_core.plugins import build

    with pytest.raises(UserError) as caught:
        build("autoencoders", "dct", {"factor": 4, "channels": 49})
    assert caught.value.code == "invalid-value"


@pytest.mark.parametrize(("factor", "channels", "expected"), [(4, 16, 33.8), (8, 16, 27.4)])
def test_photos_come_back_as_well_as_the_readme_says(factor: int, channels: int, expected: float):
    datasets = pytest.importorskip("sklearn.datasets")
    photos = [Image.fromarray(photo).resize((256, 256), Image.Resampling.BICUBIC) for photo in
              datasets.load_sample_images().images]  # fmt: skip
    images = torch.from_numpy(np.stack([np.asarray(photo) for photo in photos])).permute(0, 3, 1, 2).contiguous()
    plugin = made(factor=factor, channels=channels)
    error = (plugin.decode(plugin.encode(images)).float() - images.float()).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(255**2 / error)).mean().item() == pytest.approx(expected, abs=0.3)
