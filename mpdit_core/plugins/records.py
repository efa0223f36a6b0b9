"""What a result records about its plugins: enough to build them again, or to name the package that is missing."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.plugins.contracts import KINDS, Kind
from mpdit_core.plugins.finding import names
from mpdit_core.plugins.loading import build, load, resolve
from mpdit_core.reporting import jsonable
from mpdit_core.settings import Settings, setting


class PluginRecord(Settings):
    """The plugin that computed something, with all its options; if no package offers it, its file."""

    kind: str = setting(..., "kind of the plugin")
    name: str = setting(..., "name by which it was requested")
    package: str | None = setting(None, "package that offers it")
    version: str | None = setting(None, "version of the package")
    options: dict[str, Any] = setting({}, "all its options, defaults too")
    source: str | None = setting(None, "file of a plugin without a package")
    sha256: str | None = setting(None, "SHA-256 of that file")

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, without the fields that do not concern it."""
        return self.model_dump(exclude_unset=True)


def record(kind: Kind, name: str, instance: Any) -> PluginRecord:
    """The record of a plugin that was built. Only the fields that concern it are set."""
    entry = resolve(kind, name)
    options = option_values(instance)
    if entry.package:
        return PluginRecord(kind=kind, name=name, package=entry.package, version=entry.version, options=options)
    source = Path(inspect.getsourcefile(load(kind, name)) or "")
    digest = hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else None
    return PluginRecord(
        kind=kind, name=name, package=None, version=None, options=options, source=str(source), sha256=digest
    )


def option_values(instance: Any) -> dict[str, Any]:
    """All options of a plugin in plain JSON, also those with default values."""
    return {f.name: jsonable(getattr(instance, f.name)) for f in dataclasses.fields(instance) if f.init}


def rebuild(recorded: Mapping[str, Any], *, trusted: bool = False) -> Any:
    """The plugin that a record describes, as read from its JSON, with its options.

    Raises:
        UserError: its package is missing (`other-package`), its options no longer fit, or it is no installed plugin
            and not `trusted` (`untrusted-code`).
    """
    require_package(recorded)
    return build(recorded["kind"], recorded["name"], recorded.get("options"), trusted=trusted)


def require_package(recorded: Mapping[str, Any]) -> None:
    """Raises `UserError` (`other-package`) if the recorded package is missing, or another one now has the name."""
    kind, name, package = recorded["kind"], recorded["name"], recorded.get("package")
    if not package:
        return
    now = resolve(kind, name).package if name in names(kind) else None
    if now == package:
        return
    version = recorded.get("version")
    wanted = f"{package}=={version}" if version else package
    came = f"{KINDS[kind].word} {name!r} is from the package {wanted.replace('==', ' ')}"
    raise UserError(
        f"{came}, but the package {now} offers it now" if now else f"{came}, which is not installed",
        code="other-package",
        expected="the package that the result was made with",
        remedy=f"uninstall {now}, then pip install '{wanted}'" if now else f"pip install '{wanted}'",
    )
