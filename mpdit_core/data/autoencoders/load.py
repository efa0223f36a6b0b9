"""From the name of an autoencoder, or the spec that came with latents or a model, to the autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch

from mpdit_core.data.autoencoders.base import Autoencoder
from mpdit_core.data.autoencoders.diffusers import WEIGHTS, load_diffusers
from mpdit_core.data.autoencoders.pixels import PixelAutoencoder
from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.errors import UserError
from mpdit_core.runtime.hub import download

DEFAULT_AUTOENCODER = "stabilityai/sd-vae-ft-ema"


def load_autoencoder(
    id_or_spec: str | AutoencoderSpec,
    *,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> Autoencoder:
    """The autoencoder called `pixels`, `pixels-gray`, by a local folder, or by a Hub id; or that of a `spec`.

    A Hub id is looked for in the local cache first, then on the Hub.

    Raises:
        UserError: it cannot be found, is of an unknown class, or has other weights than the spec's hash says
            (`another-autoencoder`).
    """
    device = torch.device(device)
    spec = id_or_spec if isinstance(id_or_spec, AutoencoderSpec) else None
    name = spec.id if spec else str(id_or_spec)
    if name in ("pixels", "pixels-gray"):
        return PixelAutoencoder(gray=name == "pixels-gray", device=device)
    folder, commit = _locate(name, revision=spec.revision if spec else revision)
    loaded = load_diffusers(folder, name=name, revision=commit, device=device)
    if spec and spec.sha256 and spec.sha256 != loaded.spec.sha256:
        raise UserError(
            f"the autoencoder {name} is another one than the latents were made with "
            f"(its weights hash to {loaded.spec.sha256}, expected {spec.sha256})",
            code="another-autoencoder",
            expected="the same weights" + (f", revision {spec.revision}" if spec.revision else ""),
            remedy="put the old weights back, or encode the images again",
        )
    return loaded


def _locate(name: str, *, revision: str | None) -> tuple[Path, str | None]:
    """(folder with `config.json` and weights, its commit if it came from the Hub). Downloaded if it is not cached."""
    path = Path(name).expanduser()
    if path.is_dir():
        return next((f for f in (path, path / "vae") if (f / "config.json").is_file()), path), None
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"autoencoder {name}: there is no such folder",
            code="no-such-autoencoder",
            expected="pixels, pixels-gray, a folder with config.json and its weights, or a Hub id ORG/NAME",
            remedy=f"the default is {DEFAULT_AUTOENCODER}",
        )
    folder = download(name, revision=revision, patterns=["config.json", WEIGHTS], cached_first=True)
    return folder, folder.name if folder.parent.name == "snapshots" else None
