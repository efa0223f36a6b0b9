"""From the name of an autoencoder, or the spec that came with latents or a model, to the autoencoder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import torch

from mpdit_core.data.autoencoders.base import Autoencoder
from mpdit_core.data.autoencoders.diffusers import WEIGHTS, load_diffusers
from mpdit_core.data.autoencoders.pixels import PixelAutoencoder
from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.errors import UserError

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
    folder = _from_hub(name, revision)
    return folder, folder.name if folder.parent.name == "snapshots" else None


def _from_hub(name: str, revision: str | None) -> Path:
    # integrator: return hub.download(name, revision=revision, patterns=["config.json", WEIGHTS], cached_first=True)
    from huggingface_hub import constants, hf_hub_download

    reason: Exception | None = None
    for local in (True, False):  # the cache first: no waiting for a network, and the same weights as last time
        try:
            if not local:
                host = urlsplit(constants.ENDPOINT).hostname
                if host and not any(os.environ.get(n) for n in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
                    socket.getaddrinfo(host, 443)  # fails at once, not after half a minute of retries
            config = hf_hub_download(name, "config.json", revision=revision, local_files_only=local)
            hf_hub_download(name, WEIGHTS, revision=revision, local_files_only=local)
            return Path(config).parent
        except Exception as error:  # of the HTTP library, which differs between versions, or of the Hub's answer
            reason = error
    lines = str(reason).strip().splitlines()
    raise UserError(
        f"the autoencoder {name}{f' at revision {revision}' if revision else ''} is not in the local Hugging Face "
        f"cache ({constants.HF_HUB_CACHE}), and the Hub did not give it: {lines[0] if lines else reason!r}",
        code="not-on-hub",
        expected="a cached or reachable model repository with config.json and " + WEIGHTS,
        remedy=f"on a machine with a network: `hf download {name}`, then set HF_HOME to that cache here; or "
        "--autoencoder DIR with a local copy",
    ) from reason
