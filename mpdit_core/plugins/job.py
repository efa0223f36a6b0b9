"""What `mpdit plugins` lists and shows: every plugin with its package, its options and what is wrong with it.

The list imports every plugin in this process, within `plugin_errors`. A plugin that crashes the interpreter or never
finishes its import also ends the list; then use `MPDIT_PLUGINS=off`, or uninstall the plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mpdit_core.errors import UserError, did_you_mean
from mpdit_core.plugins.contracts import KINDS
from mpdit_core.plugins.errors import PluginError
from mpdit_core.plugins.finding import LISTED, UNREADABLE, Entry, entries
from mpdit_core.plugins.loading import load_entry, resolve
from mpdit_core.plugins.options import Option, options_of, summary_of
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


def _listed(reports: list[PluginReport]) -> PluginList:
    return PluginList(plugins=tuple(reports), broken=sum(report.status == "broken" for report in reports))


def _entry_at(name: str) -> Entry:
    """`module:Class` or `./file.py:Class`, as the first kind whose contract it fulfils."""
    problems = []
    for kind in KINDS:
        try:
            entry = resolve(kind, name)
            load_entry(entry)
            return entry
        except UserError as error:
            problems.append(error)
    raise problems[0]


def _examine(entry: Entry, declared: Sequence[Entry] = ()) -> PluginReport:
    """Imports one plugin and describes it, or what is wrong with it. `declared` may offer others under its name."""
    reinstall = f"pip install --force-reinstall {entry.package}"
    if entry.problem:
        return _report(entry, status="broken", reason=entry.problem, remedy=reinstall)
    others = [e for e in declared if (e.kind, e.name) == (entry.kind, entry.name) and e is not entry]
    if others and not entry.is_ours:
        packages = " and ".join(sorted({f"{e.package} {e.version}" for e in others}))
        uninstall = "uninstall it" if any(e.is_ours for e in others) else "uninstall one of them"
        return _report(
            entry,
            status="broken",
            reason=f"the name {entry.name!r} is also offered by {packages}",
            remedy=f"name this one by its class, {entry.value}, or {uninstall}",
        )
    try:
        loaded, printed = load_entry(entry)
    except PluginError as error:
        cause = error.__cause__
        missing = (getattr(cause, "name", None) or "").split(".")[0]
        if isinstance(cause, ModuleNotFoundError) and missing and not entry.value.startswith(missing):
            remedy = f"pip install {missing} (or reinstall {entry.package}, which should require it)"
        elif isinstance(cause, ImportError | AttributeError):
            remedy = reinstall
        else:
            remedy = f"pip install --upgrade {entry.package}, or report it to its author, or uninstall it"
        return _report(entry, status="broken", reason=error.reason, remedy=remedy)
    is_class = isinstance(loaded, type)
    values = {name: getattr(loaded, name, None) for name in KINDS[entry.kind].facts}
    described: dict[str, Any] = {
        "summary": summary_of(loaded) if is_class else loaded.help,
        "options": options_of(loaded) if is_class else (),
        "facts": {name: value for name, value in values.items() if isinstance(value, int | float | str | bool)},
    }
    lines = printed.strip().splitlines()
    if lines:
        reason = f"prints text when it is imported: {lines[0][:80]!r}"
        described |= {"status": "noisy", "reason": reason, "remedy": "none needed: mpdit discards that text"}
    return _report(entry, **described)


def _report(entry: Entry, **found: Any) -> PluginReport:
    identity = {key: getattr(entry, key) for key in ("kind", "name", "package", "version", "value")}
    return PluginReport(**identity, **found)
