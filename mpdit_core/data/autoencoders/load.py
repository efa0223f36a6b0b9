"""Loading an autoencoder by its name, or by the spec that latents and models record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mpdit_core import plugins
from mpdit_core.data.autoencoders.diffusers import WEIGHTS, DiffusersAutoencoder
from mpdit_core.data.autoencoders.loaded import LoadedAutoencoder
from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.errors import UserError
from mpdit_core.plugins import plugin_errors
from mpdit_core.protocols import Autoencoder
from mpdit_core.runtime.hub import download
from mpdit_core.settings import validate

DEFAULT_AUTOENCODER = "stabilityai/sd-vae-ft-ema"


def load_autoencoder(
    id_or_spec: str | AutoencoderSpec,
    *,
    device: torch.device | str = "cpu",
    options: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> LoadedAutoencoder:
    """Loads a plugin by its name, a local folder, or `ORG/NAME[:SUBFOLDER][@REVISION]` on the Hub; or by a spec.

    For the Hub, the local cache is looked up first.

    Args:
        options: options of a plugin; a spec has its own.
        trust: whether a spec, which was read from a file, may name code that is not installed.

    Raises:
        UserError: it cannot be found, its class is unknown, options do not fit, its package is not installed, or it
            is not the one of the spec (`another-autoencoder`).
    """
    device = torch.device(device)
    spec = id_or_spec if isinstance(id_or_spec, AutoencoderSpec) else None
    name = spec.id if spec else str(id_or_spec)
    if spec and spec.package:
        plugins.require_package({"kind": "autoencoders", "name": name, "package": spec.package})
    if is_plugin(name):
        given = spec.options if spec else options or {}
        plugin, facts = _load_plugin(name, given, device, trusted=spec is None or trust)
    elif options:
        raise UserError(
            f"the autoencoder {name} has no option {next(iter(options))}",
            code="option-does-not-apply",
            expected="options of a plugin",
            remedy="leave it out",
        )
    else:
        plugin, facts = _load_diffusers(name, spec, device)
    facts |= {key: getattr(plugin, key) for key in ("channels", "factor", "stores")}
    facts |= {key: getattr(plugin, key) for key in ("flip_equivariant", "resolution") if hasattr(plugin, key)}
    found = validate(AutoencoderSpec, facts, origin=f"autoencoder {name}")  # a plugin may have impossible values
    if spec:
        _require_same(spec, found)
    return LoadedAutoencoder(plugin, spec=found, device=device)


def is_plugin(name: str) -> bool:
    """Whether `name` is that of a plugin, `module:Class` or `file.py:Class`, and not `ORG/NAME:SUBFOLDER`."""
    where, colon, _ = name.rpartition(":")
    return name in plugins.names("autoencoders") or bool(colon and (where.endswith(".py") or "/" not in name))


def _load_plugin(
    name: str, options: Mapping[str, Any], device: torch.device, *, trusted: bool
) -> tuple[Autoencoder, dict[str, Any]]:
    """(autoencoder, what its spec records of its origin)."""
    entry = plugins.resolve("autoencoders", name, trusted=trusted)
    plugin: Autoencoder = plugins.build("autoencoders", name, options, trusted=trusted)
    with plugin_errors(plugin, "in load"):
        plugin.load(device)
    all_options = plugins.option_values(plugin)
    if entry.is_ours:  # no weights; options without defaults, so that a new option changes no fingerprint
        defaults = {field.name: field.default for field in dataclasses.fields(plugin)}  # pyright: ignore[reportArgumentType]
        return plugin, {"id": name, "options": {k: v for k, v in all_options.items() if v != defaults[k]}}
    with plugin_errors(plugin, "in fingerprint"):
        fingerprint = plugin.fingerprint()
    return plugin, {"id": name, "sha256": fingerprint, "package": entry.package or None, "options": all_options}


def _load_diffusers(
    name: str, spec: AutoencoderSpec | None, device: torch.device
) -> tuple[Autoencoder, dict[str, Any]]:
    folder, place, commit = _locate(name, spec)
    known: Any = spec.model_dump(include={"channels", "factor", "stores", "resolution"}) if spec else {}
    plugin = DiffusersAutoencoder(folder, **known)
    plugin.load(device)
    return plugin, {"id": place, "revision": commit, "sha256": plugin.fingerprint()}


def _require_same(spec: AutoencoderSpec, found: AutoencoderSpec) -> None:
    """Raises `UserError` where `found` is not the autoencoder of `spec`, and would decode its latents wrongly."""
    expected = (spec.sha256 or found.sha256, spec.channels, spec.factor)
    if (found.sha256, found.channels, found.factor) != expected:
        raise UserError(
            f"the autoencoder {spec.id} is not the one that the latents were made with "
            f"(its hash is {found.sha256}, expected {spec.sha256})",
            code="another-autoencoder",
            expected="the same weights" + (f", revision {spec.revision}" if spec.revision else ""),
            remedy="restore the old weights, or encode the images again",
        )


def _locate(name: str, spec: AutoencoderSpec | None) -> tuple[Path, str, str | None]:
    """(folder with `config.json` and weights, id for the record, commit on the Hub or None), downloaded if needed."""
    path = Path(name).expanduser()
    if path.is_dir():
        folder = next((f for f in (path, path / "vae") if (f / "config.json").is_file()), path)
        return folder, str(folder.absolute()), None
    place, _, wanted = name.partition("@")
    repository, _, subfolder = place.partition(":")
    if name.startswith((".", "/", "~")) or repository.count("/") != 1:
        raise UserError(
            f"autoencoder {name}: there is no such folder",
            code="no-such-autoencoder",
            expected=f"{', '.join(plugins.names('autoencoders'))}, a folder with config.json and its weights, "
            "or ORG/NAME[:SUBFOLDER][@REVISION] on the Hub",
            remedy=f"the default is {DEFAULT_AUTOENCODER}",
        )
    try:
        folder = download(
            repository,
            revision=(spec and spec.revision) or wanted or None,
            subfolder=subfolder,
            patterns=["config.json", WEIGHTS],
            cached_first=True,
        )
    except UserError as error:
        raise UserError(
            error.what,
            code=error.code,
            expected=error.expected,
            remedy=_remedy(error, repository, subfolder, is_recorded=spec is not None),
        ) from error
    snapshot = folder.parents[subfolder.count("/")] if subfolder else folder
    return folder, place, snapshot.name if snapshot.parent.name == "snapshots" else None


def _remedy(error: UserError, repository: str, subfolder: str, *, is_recorded: bool) -> str | None:
    """The remedy where an autoencoder is not found on the Hub. Recorded latents need that one, no other."""
    if error.code == "no-such-file" and not subfolder:
        return f"--autoencoder {repository}:vae, or the folder that holds it"
    if error.code == "hub-unreachable" and not is_recorded:
        need_none = [name for name in ("dct", "pixels") if name in plugins.names("autoencoders")]
        ways = " or ".join(f"`--autoencoder {name}`" for name in need_none)
        return f"encode images with {ways}, without a download; or {error.remedy}"
    return error.remedy
