"""Subcommands of other packages: listed without being imported, called like our own, and alone when they are broken."""

from __future__ import annotations

import sys
from pathlib import Path

import launch
import pytest

CODE = """
from dataclasses import dataclass
from mpdit_core.settings import Options, Result, setting

class PieOptions(Options):
    fruit: str = setting(..., "fruit of the pie", argument=True, metavar="FRUIT")
    slices: int = setting(8, "number of slices", ge=1)

class PieResult(Result):
    pies: int = setting(..., "number of pies")

def bake(options, *, report):
    if options.fruit == "stone":
        raise ZeroDivisionError("teeth")
    return PieResult(pies=options.slices // 8)

@dataclass
class Command:
    options: type
    job: object
    help: str

pie = Command(PieOptions, bake, "Bake a pie.")
"""


def install(site: Path, package: str, name: str, code: str) -> None:
    """A package with one command, as pip would leave it in `site`."""
    module = package.replace("-", "_")
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nSummary: Pies of all kinds\n"
    )
    (info / "entry_points.txt").write_text(f"[mpdit.commands]\n{name} = {module}:pie\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_command_is_listed_by_its_metadata_and_works_like_ours(site: Path):
    install(site, "tasty-pies", "pie", CODE)
    listed = launch.run("--help")
    assert "Pies of all kinds" in listed.out
    assert "tasty_pies" not in sys.modules
    done = launch.succeed("pie", "plum", "--slices", 16, "--json")
    assert done.result == {"event": "result", "pies": 2}
    assert "number of slices" in launch.run("pie", "--help").out.lower()
    refused = launch.run("pie", "plum", "--slices", 0, "--json")
    assert (refused.code, refused.result["code"]) == (2, "invalid-value")


def test_a_name_of_ours_cannot_be_taken(site: Path):
    install(site, "thief", "train", "raise SystemExit('imported')")
    assert "--preset" in launch.run("train", "--help").out


def test_two_of_one_name_are_refused_by_naming_both(site: Path):
    install(site, "tasty-pies", "pie", CODE)
    install(site, "other-pies", "pie", CODE)
    refused = launch.run("pie", "plum", "--json")
    assert (refused.code, refused.result["code"]) == (2, "ambiguous-plugin")
    assert "tasty-pies" in refused.err
    assert "other-pies" in refused.err


@pytest.mark.parametrize("code", ["import nothing_of_the_kind", "pie = 3", "raise SystemExit(3)"])
def test_a_broken_one_fails_alone(site: Path, code: str):
    install(site, "broken-pies", "pie", code)
    refused = launch.run("pie", "plum", "--json")
    assert (refused.code, refused.result["code"]) == (2, "broken-plugin")
    assert launch.run("--help").code == 0
