"""`mpdit doctor`: checks of the machine and the installation, for the user or for the report of a defect.

To add an area: a function from the options to its checks in a file of this folder, its row in `AREAS`, and its name in
`options.Area`. A function imports what it examines when it is called, because that import may be what is broken.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

from mpdit_core.doctor import contents, machine, weights
from mpdit_core.doctor.options import Area, Check, Diagnosis, DoctorOptions
from mpdit_core.reporting import Progress, Reporter, silent

AREAS: dict[Area, Callable[[DoctorOptions], Iterable[Check]]] = {
    "versions": machine.versions,
    "devices": machine.devices,
    "compile": machine.compiler,
    "weights": weights.downloads,
    "disk": machine.disk,
    "here": contents.here,
    "plugins": contents.plugins,
}


def diagnose(options: DoctorOptions, *, report: Reporter = silent) -> Diagnosis:
    """Examines the areas that are asked for, or all. A fault is not an error: it is a check with a remedy."""
    areas = options.areas or get_args(Area)
    checks: list[Check] = []
    for number, area in enumerate(areas):
        report(Progress(task="doctor", done=number, total=len(areas), unit="areas"))
        checks += _examined(area, options)
    report(Progress(task="doctor", done=len(areas), total=len(areas), unit="areas"))
    if not options.paths:
        checks = [_without_paths(check) for check in checks]
    return Diagnosis(checks=tuple(checks), faults=sum(check.status == "fault" for check in checks))


def _examined(area: Area, options: DoctorOptions) -> list[Check]:
    try:
        return list(AREAS[area](options))
    except Exception as error:  # a broken installation may raise anything, and the other areas may show why
        what = f"cannot be examined: {type(error).__name__}: {error}"
        remedy = "pip install --force-reinstall mpdit, in a separate environment"
        return [Check(area=area, name=area, status="fault", what=what, remedy=remedy)]


def _without_paths(check: Check) -> Check:
    """The check with short names for folders whose paths may contain the name of the user."""
    names = {Path(sys.prefix): "ENVIRONMENT", Path.home(): "~"}
    with contextlib.suppress(FileNotFoundError):  # the working directory was deleted
        names[Path.cwd()] = "."
    texts = {"name": check.name, "what": check.what, "remedy": check.remedy}
    for folder in sorted(names, key=lambda folder: -len(str(folder))):
        if folder != Path(folder.anchor):
            texts = {key: text.replace(str(folder), names[folder]) for key, text in texts.items()}
    return check.model_copy(update=texts)
