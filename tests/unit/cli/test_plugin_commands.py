"""Subcommands of other packages: listed without being imported, called like our own, and alone when they are broken."""

from __future__ import annotations

import functools
import sys
import tomllib
from pathlib import Path

import launch
import plugin_site
import pytest

from mpdit_core.plugins import new_plugin

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

S = Command(PieOptions, bake, "Bake a pie.")
"""


install = functools.partial(plugin_site.install, group="mpdit.commands")


def test_a_command_is_listed_by_its_metadata_and_works_like_ours(site: Path):
    install(site, "pie", CODE, package="tasty-pies")
    listed = launch.run("--help")
    assert "Pies of all kinds" in listed.out
    assert "tasty_pies" not in sys.modules
    done = launch.succeed("pie", "plum", "--slices", 16, "--json")
    assert done.result == {"event": "result", "pies": 2}
    assert "number of slices" in launch.run("pie", "--help").out.lower()
    refused = launch.run("pie", "plum", "--slices", 0, "--json")
    assert (refused.code, refused.result["code"]) == (2, "invalid-value")


def test_a_name_of_ours_cannot_be_taken(site: Path):
    install(site, "train", "raise SystemExit('imported')", package="thief")
    assert "--preset" in launch.run("train", "--help").out


def test_two_of_one_name_are_refused_by_naming_both(site: Path):
    install(site, "pie", CODE, package="tasty-pies")
    install(site, "pie", CODE, package="other-pies")
    refused = launch.run("pie", "plum", "--json")
    assert (refused.code, refused.result["code"]) == (2, "ambiguous-plugin")
    assert "tasty-pies" in refused.err
    assert "other-pies" in refused.err


@pytest.mark.parametrize("code", ["import nothing_of_the_kind", "S = 3", "raise SystemExit(3)"])
def test_a_broken_one_fails_alone(site: Path, code: str):
    install(site, "pie", code, package="broken-pies")
    refused = launch.run("pie", "plum", "--json")
    assert (refused.code, refused.result["code"]) == (2, "broken-plugin")
    assert launch.run("--help").code == 0


def test_a_new_package_is_a_command(site: Path, monkeypatch: pytest.MonkeyPatch):
    folder = new_plugin("command", "count-files", site / "new").path
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    plugin_site.write_metadata(site, project["name"], project["entry-points"])
    monkeypatch.syspath_prepend(str(folder))
    done = launch.succeed("count-files", folder, "--most", 1, "--json")
    assert (done.result["files"], done.result["endings"]) == (4, {".py": 2})
