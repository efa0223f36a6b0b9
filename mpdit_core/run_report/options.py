"""The options and the result of `mpdit report`. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mpdit_core.settings import DeviceOptions, Result, setting


class ReportOptions(DeviceOptions):
    """The run to describe, and others to compare it with."""

    run: Path = setting(..., "run folder", argument=True, metavar="RUN", strict=False)
    others: tuple[Annotated[Path, Field(strict=False)], ...] = setting(
        (), "further runs, drawn over the first", argument=True, repeated=True, metavar="RUN", strict=False
    )
    out: Path | None = setting(
        None, "HTML page to write", metavar="FILE", panel="Output", strict=False, chosen="RUN/report.html"
    )


Place = Literal["inside", "above", "below", "unknown"]


class Verdict(Result):
    """How a quantity of a run compares with that of recorded or published runs."""

    quantity: Literal["loss", "FID"] = setting(..., "the quantity")
    place: Place = setting(
        ...,
        "position relative to the band or the published values; without these, to the values that hold for every run",
    )
    text: str = setting(..., "one sentence")


class ReportResult(Result):
    """A written page."""

    report: Path = setting(..., "the page")
    facts: dict[str, str] = setting({}, "the facts of the first run, as text")
    verdicts: tuple[Verdict, ...] = setting((), "whether the loss and the FID of the first run are normal")
    evaluations: int = setting(0, "number of evaluations on the page")
