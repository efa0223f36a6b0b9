"""The contract of autoencoders, as a check."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mpdit_core.testing.conformance import (
    require,
    require_close,
    require_contract,
    require_fingerprint,
    require_function_of_images,
)

ROUND_TRIP_DB = 10.0  # PSNR; white noise has about 8 dB against a picture


def check_autoencoder(
    autoencoder: Any, *, side: int | None = None, device: str = "cpu", psnr: float = ROUND_TRIP_DB
) -> None:
    """Checks an autoencoder against its contract: shapes, determinism, batches, the round trip, mirror images.

    Args:
        autoencoder: an instance, not loaded. Its attributes may be constants, fields or properties.
        side: height of the test pictures in pixels, by default four latent pixels; they are one latent pixel wider.
            Where the autoencoder has a `resolution`, that is their height and width.
        device: device to compute on.
        psnr: PSNR in dB that the round trip of a smooth picture must reach; `-math.inf` for untrained weights.

    Raises:
        ConformanceError: it breaks the contract; the message says how.
    """
    require_contract("autoencoders", type(autoencoder), "an autoencoder class")
    autoencoder.load(torch.device(device))
    channels, factor, stores = autoencoder.channels, autoencoder.factor, autoencoder.stores
    require(isinstance(channels, int) and channels >= 1, "channels, an integer", channels)
    require(isinstance(factor, int) and factor >= 1, "factor, an integer", factor)
    require(stores in ("mean+std", "mean", "uint8"), 'stores, "mean+std", "mean" or "uint8"', stores)
    mode = getattr(autoencoder, "mode", "RGB")
    require(mode in ("L", "RGB", "RGBA"), 'mode, "L", "RGB" or "RGBA"', mode)
    only, height = getattr(autoencoder, "resolution", None), side or max(16, 4 * factor)
    pictures = _pictures(only, only) if only else _pictures(height, height + factor)
    images = pictures.repeat(1, len(mode), 1, 1).to(device)
    stored = require_function_of_images(
        lambda images: {"latents": autoencoder.encode(images)},
        images,
        dtype=torch.uint8 if stores == "uint8" else torch.float32,
        autocast=False,
    )["latents"]
    latent_size = [length // factor for length in images.shape[-2:]]
    shape = [len(images), channels * (2 if stores == "mean+std" else 1), *latent_size]
    require(list(stored.shape) == shape, f"latents of shape {shape}", list(stored.shape))
    raw = stored / 127.5 - 1 if stores == "uint8" else stored[:, :channels]
    if stores == "mean+std":
        require((stored[:, channels:] >= 0).all(), "standard deviations, not negative")
    if getattr(autoencoder, "flip_equivariant", False):
        mirrored = autoencoder.encode(images.flip(-1))
        require_close(mirrored, stored.flip(-1), "the mirrored latents for mirrored images")

    decoded = autoencoder.decode(raw.clone())
    require(decoded.dtype == torch.uint8, "decoded images in uint8", decoded.dtype)
    require(decoded.shape == images.shape, f"decoded images of shape {list(images.shape)}", list(decoded.shape))
    require(torch.equal(decoded, autoencoder.decode(raw.clone())), "the same images the second time")
    one_by_one = torch.cat([autoencoder.decode(raw[i : i + 1].clone()) for i in range(len(raw))])
    away = (decoded.int() - one_by_one.int()).abs().max().item()
    require(away <= 1, "the same images whatever the batch size, up to one level of 255", f"a difference of {away}")
    error = (decoded.float() - images.float()).square().mean().item()
    reached = 10 * math.log10(255**2 / error) if error else math.inf
    require(reached >= psnr, f"a round trip of at least {psnr:.1f} dB", f"{reached:.1f} dB")
    require_fingerprint(autoencoder)


def _pictures(height: int, width: int) -> Tensor:
    """Four smooth grey pictures uint8 [4, 1, height, width], all different and none equal to its mirror image."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    planes = [x, 0.7 * x + 0.3 * y, 0.5 + 0.4 * torch.sin(2 * x + 3 * y), x * y]
    return (torch.stack(planes)[:, None] * 255).round().to(torch.uint8)
