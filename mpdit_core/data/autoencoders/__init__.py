"""The autoencoders between pixels and raw latents.

To add one: a module with a subclass of `Autoencoder` (base.py), and a line in `load_autoencoder` (load.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.data.autoencoders.base import Autoencoder, read_stored
    from mpdit_core.data.autoencoders.diffusers import WEIGHTS, DiffusersAutoencoder
    from mpdit_core.data.autoencoders.load import DEFAULT_AUTOENCODER, load_autoencoder
    from mpdit_core.data.autoencoders.pixels import LUMINANCE, PixelAutoencoder

__all__, __getattr__ = lazy_names(__name__, __file__)
