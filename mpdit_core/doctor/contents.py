"""Examines the installed plugins, and the working directory for damaged and unfinished runs and data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mpdit_core.doctor.options import Check, DoctorOptions

OWN = {"samplers": "euler", "features": "inception", "autoencoders": "pixels", "objectives": "flow-matching"}
"""By kind, one plugin of mpdit itself, which must be registered."""


def here(_: DoctorOptions) -> Iterator[Check]:
    """The number of entries of each kind that `mpdit ls` finds, and each entry that is damaged or unfinished."""
    from mpdit_core.workspace import ListOptions, list_workspace

    entries = list_workspace(ListOptions(folder=Path())).entries
    counts = Counter(entry.kind for entry in entries)
    text = ", ".join(f"{kind}: {count}" for kind, count in counts.items()) or "nothing that belongs to mpdit"
    yield Check(area="here", name="found", what=text, data=dict(counts))
    for entry in entries:
        if entry.status != "ok":
            status = "fault" if entry.status == "damaged" else "note"
            yield Check(area="here", name=str(entry.path), status=status, what=entry.problem, remedy=entry.remedy)


def plugins(_: DoctorOptions) -> Iterator[Check]:
    """The number of plugins of each kind, and each plugin that is broken or prints when it is imported."""
    from mpdit_core.plugins import list_plugins

    listed = list_plugins().plugins
    counts = Counter(report.kind for report in listed if report.status != "broken")
    text = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
    packages = sorted({f"{report.package} {report.version}" for report in listed})
    yield Check(area="plugins", name="installed", what=f"{text}; from {', '.join(packages)}", data=dict(counts))
    registered = {(report.kind, report.name) for report in listed}
    for kind, own in OWN.items():
        if (kind, own) not in registered:
            what = "this plugin of mpdit itself is not registered: the package metadata is older than the code"
            remedy = "install mpdit again; in a checkout with `pip install -e .`"
            yield Check(area="plugins", name=f"{kind} {own}", status="fault", what=what, remedy=remedy)
    for report in listed:
        if report.status != "ok":
            yield Check(
                area="plugins", name=f"{report.kind} {report.name} of {report.package}", what=report.reason,
                status="fault" if report.status == "broken" else "note", remedy=report.remedy,
            )  # fmt: skip
