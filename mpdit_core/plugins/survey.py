"""What is installed, what is broken and why.

Every plugin is imported in a process of its own making, one process for all as long as it lives: a plugin that crashes
the interpreter, ends it, or hangs is then reported like any other, and the rest is looked at in a fresh one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from mpdit_core.plugins.finding import KINDS, Entry, Kind, bad_metadata, entries
from mpdit_core.plugins.guard import PluginError
from mpdit_core.plugins.loading import load_entry
from mpdit_core.plugins.options import Option, options_of, summary_of

SECONDS_TO_LOAD = 60.0
MARK = "mpdit-plugin-report "  # in front of our lines, whatever else a library writes there


@dataclass(frozen=True)
class Report:
    """One plugin. `status`: ok, noisy (works, but prints when imported) or broken; `reason` and `remedy` unless ok."""

    kind: str
    name: str
    package: str
    version: str
    value: str
    status: str = "ok"
    reason: str = ""
    remedy: str = ""
    summary: str = ""
    options: list[Option] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def survey(*, kind: Kind | None = None, name: str | None = None, timeout: float = SECONDS_TO_LOAD) -> list[Report]:
    """A report on each installed plugin, or on those called `name`. Takes as long as importing them all."""
    wanted = [e for k in KINDS if kind in (None, k) for e in entries(k) if name in (None, e.name)]
    reports = []
    todo = [e for e in wanted if not _clash(e, wanted)]
    while todo:
        done = _probe(todo, timeout)
        reports += done
        todo = todo[len(done) :]
    by_entry = {(r.kind, r.name, r.package): r for r in reports}
    listed = [_clash(e, wanted) or by_entry[e.kind, e.name, e.package] for e in wanted]
    if name is None:
        listed += [
            _report(Entry("samplers", "?", "?", b.package, b.version), reason=b.reason, remedy=_reinstall(b.package))
            for b in bad_metadata()
        ]
    return listed


def examine(entry: Entry) -> Report:
    """Imports one plugin, here, and says what it is."""
    try:
        loaded, printed = load_entry(entry)
    except PluginError as error:
        return _report(entry, reason=error.reason, remedy=_remedy(entry, error))
    facts = {a: getattr(loaded, a) for a in ("order", "stochastic", "adaptive", "autoencoder", "resolution")
             if isinstance(getattr(loaded, a, None), int | float | str | bool)}  # fmt: skip
    noisy = f"prints when imported: {printed.strip().splitlines()[0][:80]!r}" if printed.strip() else ""
    return dataclasses.replace(
        _report(entry, reason=noisy, remedy="it works; its output is dropped" if noisy else ""),
        status="noisy" if noisy else "ok",
        summary=summary_of(loaded),
        options=options_of(loaded),
        facts=facts,
    )


def _report(entry: Entry, *, reason: str, remedy: str) -> Report:
    return Report(
        entry.kind, entry.name, entry.package, entry.version, entry.value, "broken", reason=reason, remedy=remedy
    )


def _clash(entry: Entry, all_entries: list[Entry]) -> Report | None:
    """The report on a plugin that cannot be reached because its name is taken."""
    others = [e for e in all_entries if (e.kind, e.name) == (entry.kind, entry.name) and e is not entry]
    if not others or entry.is_ours:
        return None
    packages = " and ".join(sorted({f"{e.package} {e.version}" for e in others}))
    reason = f"the name {entry.name!r} is also offered by {packages}"
    if any(e.is_ours for e in others):
        return _report(entry, reason=reason, remedy=f"name this one by its class, {entry.value}, or uninstall it")
    return _report(entry, reason=reason, remedy=f"uninstall one, or name this one by its class, {entry.value}")


def _remedy(entry: Entry, error: PluginError) -> str:
    cause = error.__cause__
    if isinstance(cause, ModuleNotFoundError) and cause.name and not entry.value.startswith(cause.name.split(".")[0]):
        return f"pip install {cause.name.split('.')[0]} (or reinstall {entry.package}, which should ask for it)"
    if "version" in error.reason and "contract" in error.reason:
        return f"pip install --upgrade {entry.package} mpdit"
    if isinstance(cause, ImportError | AttributeError):
        return _reinstall(entry.package)
    return f"report it to the author of {entry.package}, or pip uninstall {entry.package}"


def _reinstall(package: str) -> str:
    return f"pip install --force-reinstall {package}"


def _probe(todo: list[Entry], timeout: float) -> list[Report]:
    """Reports on the first of `todo`, as far as one process gets; at least one."""
    request = json.dumps({"path": sys.path, "entries": [dataclasses.astuple(e) for e in todo]})
    process = subprocess.Popen(
        [sys.executable, "-c", "from mpdit_core.plugins.survey import serve; serve()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert process.stdin is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    reports: list[Report] = []
    ended = "ends the process"
    try:
        process.stdin.write(request)
        process.stdin.close()
        while len(reports) < len(todo):
            line = lines.get(timeout=timeout)
            if line is None:
                code = process.wait()
                ended = f"crashes the interpreter (signal {-code})" if code < 0 else f"ends the process (code {code})"
                break
            if line.startswith(MARK):
                values = json.loads(line.removeprefix(MARK))
                reports.append(Report(**values | {"options": [Option(**o) for o in values["options"]]}))
    except queue.Empty:
        ended = f"does not finish importing within {timeout:g} s"
    except BrokenPipeError:
        pass
    finally:
        process.kill()
        process.wait()
    if len(reports) < len(todo):
        entry = todo[len(reports)]
        reports.append(_report(entry, reason=ended, remedy=f"pip uninstall {entry.package}"))
    return reports


def _pump(stream: Any, lines: queue.Queue) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def serve() -> None:
    """The other process: reads entries from stdin, writes a report for each to the stdout it started with."""
    request = json.loads(sys.stdin.read())
    sys.path[:] = request["path"]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what plugins or their libraries write below Python
    for kind, name, value, package, version in request["entries"]:
        report = examine(Entry(kind, name, value, package, version))
        out.write(f"{MARK}{json.dumps(dataclasses.asdict(report), default=str)}\n")
        out.flush()
    out.close()
    os._exit(0)  # threads that a plugin started must not keep us
