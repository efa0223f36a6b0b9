"""The options and the result of `mpdit doctor`. Torch-free."""

from __future__ import annotations

from typing import Any, Literal, get_args

from mpdit_core.settings import DeviceOptions, Result, setting

Area = Literal["versions", "devices", "compile", "weights", "disk", "here", "plugins"]


class DoctorOptions(DeviceOptions):
    """What to examine. If a device is given, only that one is measured."""

    areas: tuple[Area, ...] = setting(
        (), f"areas to examine, of {', '.join(get_args(Area))} (here: runs, latents, samples in this folder)",
        argument=True, repeated=True, metavar="AREA", strict=False, chosen="all",
    )  # fmt: skip
    paths: bool = setting(False, "show full paths, instead of ~ for the home folder and . for the working directory")


class Check(Result):
    """The result of one check."""

    area: Area = setting(..., "area of the check")
    name: str = setting(..., "what was checked")
    status: Literal["ok", "note", "fault"] = setting(
        "ok", "note: useful to know; fault: a command would fail because of it"
    )
    what: str = setting(..., "what was found")
    remedy: str = setting("", "what to do about it")
    data: dict[str, Any] = setting({}, "what was found, for programs: bytes, FLOP/s, versions")


class Diagnosis(Result):
    """The results of all checks."""

    checks: tuple[Check, ...] = setting(..., "the checks, in the order of the areas")
    faults: int = setting(..., "number of faults")
