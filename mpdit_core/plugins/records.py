"""What a result says of the plugins that made it, so that it can be repeated, or says which package is missing."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.plugins.finding import WORDS, Kind, names
from mpdit_core.plugins.loading import build, load, resolve
from mpdit_core.reporting import jsonable


def record(kind: Kind, name: str, instance: Any) -> dict[str, Any]:
    """Plain JSON: kind, name, package, version, and *all* options of `instance`, defaults too.

    Without a package: the file of its source and that file's SHA-256.
    """
    entry = resolve(kind, name)
    options = {f.name: jsonable(getattr(instance, f.name)) for f in dataclasses.fields(instance) if f.init}
    made = {"kind": kind, "name": name, "package": entry.package, "version": entry.version, "options": options}
    if not entry.version:
        source = Path(inspect.getsourcefile(load(kind, name)) or "")
        made |= {"package": None, "version": None, "source": str(source), "sha256": _sha256(source)}
    return made


def rebuild(made: Mapping[str, Any]) -> Any:
    """The plugin a record tells of, with its options.

    Raises:
        UserError: its package is not installed (naming it), or its options no longer fit.
    """
    require_package(made)
    return build(made["kind"], made["name"], made.get("options"))


def require_package(made: Mapping[str, Any]) -> None:
    """Raises `UserError` where the package a record tells of is not installed, or its name is another package's now."""
    kind, name, package = made["kind"], made["name"], made.get("package")
    if package and name not in names(kind):
        raise UserError(
            f"{WORDS[kind]} {name!r} came from the package {package} {made.get('version')}, which is not installed",
            expected="the packages a result was made with",
            remedy=f"pip install '{package}=={made.get('version')}'",
        )
    if package and resolve(kind, name).package != package:
        raise UserError(
            f"{WORDS[kind]} {name!r} came from the package {package} {made.get('version')}, but is now offered by "
            f"{resolve(kind, name).package}",
            remedy=f"uninstall that one and pip install '{package}=={made.get('version')}'",
        )


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
