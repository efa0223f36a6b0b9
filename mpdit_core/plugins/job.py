"""The jobs behind `mpdit plugins`: the list, one plugin's page, a new package. And what they return.

The list imports every plugin in this process, within `plugin_errors`. A plugin that crashes the interpreter or never
finishes its import takes the list with it; `MPDIT_PLUGINS=off` and uninstalling it are the ways out.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mpdit_core.errors import UserError
from mpdit_core.plugins.contracts import KINDS
from mpdit_core.plugins.errors import PluginError
from mpdit_core.plugins.finding import BadMetadata, Entry, bad_metadata, entries, names
from mpdit_core.plugins.loading import load_entry, resolve
from mpdit_core.plugins.options import Option, options_of, summary_of
from mpdit_core.plugins.scaffold import new_package
from mpdit_core.reporting import Reporter, Saved, silent
from mpdit_core.settings import Result, setting


class PluginReport(Result):
    """One plugin, as it was found."""

    kind: str = setting(..., "samplers, datasets, features, autoencoders or commands")
    name: str = setting(..., "its name; ? where the metadata of its package cannot be read")
    package: str = setting(..., "the package that offers it; empty: it was named by module or file")
    version: str = setting(..., "version of the package")
    value: str = setting(..., "where its class is: module:Class")
    status: Literal["ok", "noisy", "broken"] = setting("ok", "noisy: it works, but prints when it is imported")
    reason: str = setting("", "what is wrong")
    remedy: str = setting("", "what to do about it")
    summary: str = setting("", "what it is, in its author's words")
    options: tuple[Option, ...] = setting((), "its options")
    facts: dict[str, Any] = setting({}, "what its class claims, such as its order")


class PluginList(Result):
    """Installed plugins."""

    plugins: tuple[PluginReport, ...] = setting(..., "one report per plugin")
    broken: int = setting(..., "number of broken ones")


class NewPlugin(Result):
    """A new package."""

    path: Path = setting(..., "its folder")
    kind: str = setting(..., "sampler, dataset, features or autoencoder")
    name: str = setting(..., "the plugin's name")


def list_plugins(*, report: Reporter = silent) -> PluginList:  # noqa: ARG001 - a job takes a reporter
    """All that is installed, each imported once. A broken plugin is no error: it is listed, with reason and remedy."""
    declared = [entry for kind in KINDS for entry in entries(kind)]
    return _listed([*_reports(declared), *map(_unreadable, bad_metadata())])


def show_plugin(name: str, *, report: Reporter = silent) -> PluginList:  # noqa: ARG001
    """What is called `name`, in every kind, or is at `module:Class` or `./file.py:Class`.

    Raises:
        UserError: nothing has this name (`no-such-plugin`), with the nearest names.
    """
    if ":" in name:
        return _listed([_at(name)])
    found = _reports([entry for kind in KINDS for entry in entries(kind) if entry.name == name])
    if not found:
        near = difflib.get_close_matches(name, {other for kind in KINDS for other in names(kind)}, n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "`mpdit plugins` lists what is installed"
        raise UserError(f"no plugin is called {name!r}", code="no-such-plugin", remedy=remedy)
    return _listed(found)


def new_plugin(kind: str, name: str, out: Path | None = None, *, report: Reporter = silent) -> NewPlugin:
    """Writes an installable package into `out` (default `./mpdit-NAME`). Raises `UserError` as `new_package`."""
    path = new_package(kind, name, folder=out)
    report(Saved(what="package", path=path))
    return NewPlugin(path=path, kind=kind, name=name)


def examine(entry: Entry) -> PluginReport:
    """Imports one plugin and describes it, whatever its import raises."""
    try:
        loaded, printed = load_entry(entry)
    except PluginError as error:
        return _broken(entry, error.reason, _remedy(entry, error))
    lines = printed.strip().splitlines()
    values = {name: getattr(loaded, name, None) for name in KINDS[entry.kind].facts}
    return PluginReport(
        **_identity(entry),
        status="noisy" if lines else "ok",
        reason=f"prints when it is imported: {lines[0][:80]!r}" if lines else "",
        remedy="none needed: what it prints is dropped" if lines else "",
        summary=summary_of(loaded) if isinstance(loaded, type) else loaded.help,
        options=options_of(loaded) if isinstance(loaded, type) else (),
        facts={name: value for name, value in values.items() if isinstance(value, int | float | str | bool)},
    )


def _listed(reports: Sequence[PluginReport]) -> PluginList:
    return PluginList(plugins=tuple(reports), broken=sum(report.status == "broken" for report in reports))


def _reports(declared: Sequence[Entry]) -> list[PluginReport]:
    return [_clash(entry, declared) or examine(entry) for entry in declared]


def _identity(entry: Entry) -> dict[str, Any]:
    return {key: getattr(entry, key) for key in ("kind", "name", "package", "version", "value")}


def _broken(entry: Entry, reason: str, remedy: str) -> PluginReport:
    return PluginReport(**_identity(entry), status="broken", reason=reason, remedy=remedy)


def _unreadable(bad: BadMetadata) -> PluginReport:
    return _broken(Entry("?", "?", "?", bad.package, bad.version), bad.reason, _reinstall(bad.package))


def _clash(entry: Entry, declared: Sequence[Entry]) -> PluginReport | None:
    """The report on a plugin that cannot be reached because its name is taken."""
    others = [e for e in declared if (e.kind, e.name) == (entry.kind, entry.name) and e is not entry]
    if not others or entry.is_ours:
        return None
    packages = " and ".join(sorted({f"{e.package} {e.version}" for e in others}))
    reason = f"the name {entry.name!r} is also offered by {packages}"
    if any(e.is_ours for e in others):
        return _broken(entry, reason, f"name this one by its class, {entry.value}, or uninstall it")
    return _broken(entry, reason, f"uninstall one, or name this one by its class, {entry.value}")


def _remedy(entry: Entry, error: PluginError) -> str:
    cause = error.__cause__
    if isinstance(cause, ModuleNotFoundError) and cause.name and not entry.value.startswith(cause.name.split(".")[0]):
        return f"pip install {cause.name.split('.')[0]} (or reinstall {entry.package}, which should ask for it)"
    if isinstance(cause, ImportError | AttributeError):
        return _reinstall(entry.package)
    return _report_it(entry)


def _report_it(entry: Entry) -> str:
    return f"pip install --upgrade {entry.package}, or report it to its author, or pip uninstall {entry.package}"


def _reinstall(package: str) -> str:
    return f"pip install --force-reinstall {package}"


def _at(name: str) -> PluginReport:
    """The one at `module:Class` or `./file.py:Class`, of the first kind whose contract it keeps."""
    problems = []
    for kind in KINDS:
        try:
            load_entry(resolve(kind, name))
        except UserError as error:
            problems.append(error)
        else:
            return examine(resolve(kind, name))
    raise problems[0]
