"""What an autoencoder must keep to."""

from __future__ import annotations

import math
from typing import Any

from mpdit_core.plugins import contract_problem
from mpdit_core.testing.conformance import require

ROUND_TRIP_DB = 10.0  # PSNR; white noise against a picture has some 8 dB


def check_autoencoder(
    autoencoder: Any, *, side: int | None = None, device: str = "cpu", psnr: float = ROUND_TRIP_DB
) -> None:
    """Checks an autoencoder against its contract: shapes, determinism, batches, the round trip, mirror images.

    Args:
        autoencoder: an instance, not loaded, of any class: its attributes may be constants, fields or properties.
        side: height in pixels of the made-up pictures, four latent pixels by default; they are one latent pixel wider.
            Both are the autoencoder's own `resolution`, where it has one.
        device: device to compute on.
        psnr: what the round trip of a smooth picture must reach, in dB; `-math.inf` for weights that are not trained.

    Raises:
        ConformanceError: it breaks the contract; the message says how.
    """
    import torch

    problem = contract_problem("autoencoders", type(autoencoder))
    require(problem is None, "an autoencoder class", problem)
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
    before = images.clone()
    stored = autoencoder.encode(images)
    require(torch.equal(images, before), "the images to be left as they are")
    latent_size = [length // factor for length in images.shape[-2:]]
    shape = (len(images), channels * (2 if stores == "mean+std" else 1), *latent_size)
    require(tuple(stored.shape) == shape, f"what is stored of shape {list(shape)}", list(stored.shape))
    dtype = torch.uint8 if stores == "uint8" else torch.float32
    require(stored.dtype == dtype, f"what is stored in {dtype}", stored.dtype)
    require(not stored.requires_grad, "what is stored without gradients")
    require(torch.isfinite(stored).all(), "what is stored finite")
    require(torch.equal(stored, autoencoder.encode(images)), "the same stored the second time")
    alone = torch.cat([autoencoder.encode(images[i : i + 1]) for i in range(len(images))])
    _require_close(stored, alone, "stored whatever the batch size")
    require(not torch.allclose(stored[0].float(), stored[-1].float()), "other latents for other images")
    raw = stored / 127.5 - 1 if stores == "uint8" else stored[:, :channels]
    if stores == "mean+std":
        require((stored[:, channels:] >= 0).all(), "standard deviations, not negative")
    if getattr(autoencoder, "flip_equivariant", False):
        _require_close(autoencoder.encode(images.flip(-1)), stored.flip(-1), "stored for mirror images, mirrored")

    decoded = autoencoder.decode(raw.clone())
    require(decoded.dtype == torch.uint8, "decoded images in uint8", decoded.dtype)
    require(decoded.shape == images.shape, f"decoded images of shape {list(images.shape)}", list(decoded.shape))
    require(torch.equal(decoded, autoencoder.decode(raw.clone())), "the same images the second time")
    one_by_one = torch.cat([autoencoder.decode(raw[i : i + 1].clone()) for i in range(len(raw))])
    away = (decoded.int() - one_by_one.int()).abs().max().item()
    require(away <= 1, "the same images whatever the batch size, to one of 255", f"{away} off")
    error = (decoded.float() - images.float()).square().mean().item()
    reached = 10 * math.log10(255**2 / error) if error else math.inf
    require(reached >= psnr, f"a round trip of at least {psnr:.1f} dB", f"{reached:.1f} dB")
    require(isinstance(autoencoder.fingerprint(), str) and autoencoder.fingerprint(), "a fingerprint, text")
    require(autoencoder.fingerprint() == autoencoder.fingerprint(), "the same fingerprint every time")


def _pictures(height: int, width: int):
    """Four smooth grey pictures uint8 [4, 1, height, width], no two alike, none its own mirror image."""
    import torch

    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    planes = [x, 0.7 * x + 0.3 * y, 0.5 + 0.4 * torch.sin(2 * x + 3 * y), x * y]
    return (torch.stack(planes)[:, None] * 255).round().to(torch.uint8)


def _require_close(a, b, what: str) -> None:
    scale = b.float().abs().max().item()
    gap = (a.float() - b.float()).abs().max().item()
    require(gap <= 1e-4 * max(scale, 1e-6), f"the same {what}", f"{gap:.2g} off, at up to {scale:.2g}")
