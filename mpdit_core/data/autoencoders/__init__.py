"""The autoencoders between pixels and raw latents: plugins, ours among them, and those of diffusers.

To add one: a plugin in the group `mpdit.autoencoders`, a class that fulfils `mpdit_core.api.Autoencoder`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.data.autoencoders.diffusers import WEIGHTS, DiffusersAutoencoder
    from mpdit_core.data.autoencoders.load import DEFAULT_AUTOENCODER, is_plugin, load_autoencoder
    from mpdit_core.data.autoencoders.loaded import LoadedAutoencoder, read_stored
    from mpdit_core.data.autoencoders.pixel_range import as_rgb

__all__, __getattr__ = lazy_names(__name__, __file__)
