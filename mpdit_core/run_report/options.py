"""The options and the result of `mpdit report`. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mpdit_core.runtime.options import DeviceOptions
from mpdit_core.settings import Result, setting


class ReportOptions(DeviceOptions):
    """The run to describe, and others to compare it with."""

    run: Path = setting(..., "run folder", argument=True, metavar="RUN", strict=False)
    others: tuple[Annotated[Path, Field(strict=False)], ...] = setting(
        (), "further runs, drawn over the first", argument=True, repeated=True, metavar="RUN", strict=False
    )
    out: Path | None = setting(
        None, "HTML page to write", metavar="FILE", panel="Output", strict=False, chosen="RUN/report.html"
    )


class ReportResult(Result):
    """A written page."""

    report: Path = setting(..., "the page")
    facts: dict[str, str] = setting({}, "the facts of the first run, as text")
    evaluations: int = setting(0, "number of evaluations on the page")
