"""Finds which packages offer which plugins, in their metadata; nothing of theirs is imported."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version

from mpdit_core.errors import UserError, did_you_mean
from mpdit_core.plugins.contracts import KINDS, Kind

OURS = "mpdit"
UNREADABLE = "?"
LISTED = "`mpdit plugins` lists what is installed"


@dataclass(frozen=True)
class Entry:
    """One declared plugin. `value` is `module:attribute`; package and version are those of the distribution.

    A plugin that is named by its module or file has no package and no version. A package whose entry points cannot be
    read has one entry of the kind `UNREADABLE`, with the reason in `problem`.
    """

    kind: Kind
    name: str
    value: str
    package: str = ""
    version: str = ""
    summary: str = ""  # of the package, in one line
    problem: str = ""

    @property
    def is_ours(self) -> bool:
        return self.package == OURS

    @property
    def label(self) -> str:
        """For messages: `sampler 'mine' (package my-sampler 0.1.0)`."""
        word = KINDS[self.kind].word
        if not self.package:
            return f"{word} {self.name}"
        return f"{word} {self.name!r} (package {self.package} {self.version})"


def entries(kind: Kind) -> list[Entry]:
    """Declared plugins of a kind, sorted by name; under one name ours first, then by package. Nothing is loaded."""
    found = [e for e in _scan() if e.kind == kind]
    return sorted(found, key=lambda e: (e.name, not e.is_ours, e.package))


def names(kind: Kind) -> list[str]:
    return sorted({e.name for e in entries(kind)})


def command_entries() -> list[Entry]:
    """Commands that can be called, sorted by name; a name that two packages offer is left out."""
    found = entries("commands")
    offered = Counter(entry.name for entry in found)
    return [entry for entry in found if offered[entry.name] == 1]


def find(kind: Kind, name: str) -> Entry:
    """The entry called `name`. Another package's plugin under a name of ours is ignored.

    Raises:
        UserError: the name is unknown (`no-such-plugin`, with similar names), or two packages offer it
            (`ambiguous-plugin`).
    """
    found = [e for e in entries(kind) if e.name == name]
    if not found:
        remedy = did_you_mean(name, names(kind), otherwise=LISTED)
        if _only_ours():
            remedy = f"{remedy} (with MPDIT_PLUGINS=off only the plugins of mpdit itself are found)"
        raise UserError(
            f"there is no {KINDS[kind].word} called {name!r}",
            code="no-such-plugin",
            expected=", ".join(names(kind)) or "none is installed",
            remedy=remedy,
        )
    if len(found) > 1 and not found[0].is_ours:
        packages = " and ".join(f"{e.package} {e.version}" for e in found)
        raise UserError(
            f"two packages offer a {KINDS[kind].word} called {name!r}: {packages}",
            code="ambiguous-plugin",
            expected="one package per name",
            remedy=f"uninstall one, or name the class: {' or '.join(e.value for e in found)}",
        )
    return found[0]


def installed_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _only_ours() -> bool:
    return os.environ.get("MPDIT_PLUGINS", "").lower() == "off"


def _scan() -> Iterator[Entry]:
    """Every plugin of every package; of two installations of a package, the one that Python would import."""
    seen: set[str] = set()
    for distribution in distributions():
        try:
            if "mpdit." not in (distribution.read_text("entry_points.txt") or ""):
                continue
        except Exception:  # an unreadable file of a package that may have nothing to do with us
            continue
        package, version = _identity(distribution)
        if package in seen or (_only_ours() and package != OURS):
            continue
        seen.add(package)
        try:
            for entry in list(distribution.entry_points):
                kind = entry.group.removeprefix("mpdit.")
                if entry.group.startswith("mpdit.") and kind in KINDS:
                    yield Entry(kind, entry.name, entry.value, package, version, distribution.metadata["Summary"] or "")
        except Exception as error:
            problem = f"its entry_points.txt is malformed ({type(error).__name__}: {error})"
            yield Entry(UNREADABLE, "?", "?", package, version, problem=problem)


def _identity(distribution: Distribution) -> tuple[str, str]:
    try:
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
    except Exception:  # no METADATA at all
        name = version = None
    return (name or "(unnamed package)").lower().replace("_", "-"), version or "(no version)"
