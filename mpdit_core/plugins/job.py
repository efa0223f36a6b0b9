"""What `mpdit plugins` lists and shows: every plugin with its package, its options and what is wrong with it.

The list imports every plugin in this process, within `plugin_errors`. A plugin that crashes the interpreter or never
finishes its import also ends the list; then use `MPDIT_PLUGINS=off`, or uninstall the plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from mpdit_core.errors import UserError, did_you_mean
from mpdit_core.plugins.contracts import KINDS, nearest_kind
from mpdit_core.plugins.errors import PluginError, plugin_errors
from mpdit_core.plugins.finding import LISTED, UNREADABLE, Entry, entries
from mpdit_core.plugins.loading import import_entry, load_entry, resolve
from mpdit_core.plugins.options import Option, describe_options, summary_of
from mpdit_core.reporting import Reporter, silent
from mpdit_core.settings import Result, setting


class PluginReport(Result):
    """One plugin, as it was found."""

    kind: str = setting(..., f"its kind, one of {', '.join(KINDS)}; ?: the metadata of its package cannot be read")
    name: str = setting(..., "its name; ?: as kind")
    package: str = setting(..., "the package that offers it; empty: it was given by module or file")
    version: str = setting(..., "version of the package")
    value: str = setting(..., "where its class is: module:Class")
    status: Literal["ok", "noisy", "broken"] = setting("ok", "noisy: it works, but prints text when it is imported")
    reason: str = setting("", "what is wrong")
    remedy: str = setting("", "what to do about it")
    summary: str = setting("", "its description by its author")
    options: tuple[Option, ...] = setting((), "its options")
    facts: dict[str, Any] = setting({}, "attributes of its class, such as the order of a sampler")


class PluginList(Result):
    """Installed plugins."""

    plugins: tuple[PluginReport, ...] = setting(..., "one report per plugin")
    broken: int = setting(..., "number of broken plugins")


def list_plugins(*, report: Reporter = silent) -> PluginList:  # noqa: ARG001 - a job takes a reporter
    """Reports all installed plugins. A broken one is no error: it is listed, with reason and remedy."""
    declared = [entry for kind in (*KINDS, UNREADABLE) for entry in entries(kind)]
    return _listed([_examine(entry, declared) for entry in declared])


def show_plugin(name: str, *, report: Reporter = silent) -> PluginList:  # noqa: ARG001
    """Reports the plugins called `name`, of every kind, or the one at `module:Class` or `./file.py:Class`.

    Raises:
        UserError: there is none of this name (`no-such-plugin`, with similar names).
    """
    if ":" in name:
        return _listed([_examine(_entry_at(name))])
    declared = [entry for kind in KINDS for entry in entries(kind)]
    found = [_examine(entry, declared) for entry in declared if entry.name == name]
    if not found:
        remedy = did_you_mean(name, {entry.name for entry in declared}, otherwise=LISTED)
        raise UserError(f"no plugin is called {name!r}", code="no-such-plugin", remedy=remedy)
    return _listed(found)


def _listed(found: list[PluginReport]) -> PluginList:
    return PluginList(plugins=tuple(found), broken=sum(one.status == "broken" for one in found))


def _entry_at(name: str) -> Entry:
    """`module:Class` or `./file.py:Class`, as the first kind whose contract it fulfils.

    Raises:
        UserError: there is no such file or class, or it fulfils no contract; what it lacks of the nearest one.
    """
    entry = resolve(next(iter(KINDS)), name)
    found, _ = import_entry(entry)
    with plugin_errors(entry.label, "to load"):
        entry = replace(entry, kind=nearest_kind(found))
    load_entry(entry)
    return entry


def _examine(entry: Entry, declared: Sequence[Entry] = ()) -> PluginReport:
    """Imports one plugin and describes it, or what is wrong with it. `declared` may offer others under its name."""
    if entry.problem:
        return _reported(entry, status="broken", reason=entry.problem, remedy=_reinstall(entry))
    if not entry.is_ours and (clash := _name_clash(entry, declared)):
        return clash
    try:
        loaded, printed = load_entry(entry)
    except PluginError as error:
        return _reported(entry, status="broken", reason=error.reason, remedy=_remedy_of(error, entry))
    is_class = isinstance(loaded, type)
    values = {name: getattr(loaded, name, None) for name in KINDS[entry.kind].facts}
    described: dict[str, Any] = {
        "summary": summary_of(loaded) if is_class else loaded.help,
        "options": describe_options(loaded) if is_class else (),
        # the others are properties, whose values only an instance has
        "facts": {name: value for name, value in values.items() if isinstance(value, int | float | str | bool | tuple)},
    }
    lines = printed.strip().splitlines()
    if lines:
        reason = f"prints text when it is imported: {lines[0][:80]!r}"
        described |= {"status": "noisy", "reason": reason, "remedy": "none needed: mpdit discards that text"}
    return _reported(entry, **described)


def _name_clash(entry: Entry, declared: Sequence[Entry]) -> PluginReport | None:
    """That another package offers the kind and name of `entry` too; None if none does."""
    others = [e for e in declared if (e.kind, e.name) == (entry.kind, entry.name) and e is not entry]
    if not others:
        return None
    packages = " and ".join(sorted({f"{e.package} {e.version}" for e in others}))
    uninstall = "uninstall it" if any(e.is_ours for e in others) else "uninstall one of them"
    return _reported(
        entry,
        status="broken",
        reason=f"the name {entry.name!r} is also offered by {packages}",
        remedy=f"name this one by its class, {entry.value}, or {uninstall}",
    )


def _remedy_of(error: PluginError, entry: Entry) -> str:
    cause = error.__cause__
    missing = (getattr(cause, "name", None) or "").split(".")[0]
    if isinstance(cause, ModuleNotFoundError) and missing and not entry.value.startswith(missing):
        return f"pip install {missing} (or reinstall {entry.package}, which should require it)"
    if isinstance(cause, ImportError | AttributeError):
        return _reinstall(entry)
    return f"pip install --upgrade {entry.package}, or report it to its author, or uninstall it"


def _reinstall(entry: Entry) -> str:
    return f"pip install --force-reinstall {entry.package}"


def _reported(entry: Entry, **found: Any) -> PluginReport:
    identity = {key: getattr(entry, key) for key in ("kind", "name", "package", "version", "value")}
    return PluginReport(**identity, **found)
