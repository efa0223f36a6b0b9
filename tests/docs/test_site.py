"""The generated parts of the site are up to date: drawn figures, the page of measurements, the list of public names."""

from __future__ import annotations

import importlib
import pkgutil
import re
import runpy

import pytest
from pages import ROOT

import mpdit_core

DOCS = ROOT / "docs"
DRAW = runpy.run_path(str(DOCS / "images" / "draw.py"))
ON_THE_API_PAGE = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", DRAW["FIGURES"])
def test_drawn_figures_are_up_to_date(name: str):
    assert (DOCS / "images" / name).read_text(encoding="utf-8") == str(DRAW["FIGURES"][name]()), (
        "python docs/images/draw.py"
    )


def test_the_page_of_measurements_is_up_to_date(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    made = importlib.import_module("measurements").page()
    assert (DOCS / "measurements.md").read_text(encoding="utf-8") == made, (
        "python benchmarks/measurements.py > docs/measurements.md"
    )


def test_every_benchmark_is_on_the_page_of_measurements():
    page = (DOCS / "measurements.md").read_text(encoding="utf-8")
    programs = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {
        "report.py",
        "measurements.py",
        "colour_pictures.py",
        "loss_band.py",
        "small_efficientnet.py",
    }
    assert {name for name in programs if f"benchmarks/{name}" not in page} == set()


def test_every_public_name_is_on_the_api_page():
    assert {f"mpdit_core.{name}" for name in mpdit_core.__all__} <= set(ON_THE_API_PAGE)


@pytest.mark.parametrize("name", ON_THE_API_PAGE)
def test_names_on_the_api_page_exist(name: str):
    pkgutil.resolve_name(name)
