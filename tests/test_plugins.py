"""Plugins of every kind of brokenness are contained and listed; options are checked; ours pass the same checks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sample_helpers import write_model

from mpdit_cli.app import main
from mpdit_core import load_sampler, plugins
from mpdit_core.errors import UserError
from mpdit_core.plugins.scaffold import TEMPLATES, new_package
from mpdit_core.plugins.survey import survey
from mpdit_core.testing import ConformanceError, check_sampler

HEAD = """
from dataclasses import dataclass
from mpdit_core.api import Step, option
@dataclass
class S:
    order = 1
    stochastic = False
    num_steps: int = option(3, "intervals", minimum=1)
    def steps(self, velocity_fn, noise, generator=None):
        x = noise
        for n in range(self.num_steps):
            x = x - velocity_fn(x, noise.new_full((1,), 1 - n / self.num_steps)) / self.num_steps
            yield Step(1 - (n + 1) / self.num_steps, x)
"""

# what is wrong: (module, what the list says of it)
BROKEN = {
    "no-import": ("import (", "SyntaxError"),
    "missing-library": ("import a_library_nobody_has", "a_library_nobody_has"),
    "raises": ("raise RuntimeError('cannot start')", "RuntimeError: cannot start"),
    "exits": ("import sys; sys.exit(3)", "sys.exit(3)"),
    "dies": ("import os; os._exit(4)", "code 4"),
    "wrong-type": ("S = 3", "a int"),
    "not-dataclass": ("class S: pass", "the class S"),
    "no-attribute": ("T = 3", "AttributeError"),
    "other-api": (HEAD + "    plugin_api = 99\n", "version 99"),
    "no-steps": (HEAD.replace("def steps", "def stops"), "lacks steps()"),
    "bad-arguments": (HEAD.replace(", generator=None", ""), "does not take the 3 arguments"),
    "bad-type": (HEAD + "    other: 'Nowhere' = 3\n", "types of its options"),
    "euler": (HEAD, "also offered by mpdit "),
}


def install(site: Path, name: str, code: str, *, package: str | None = None) -> None:
    package = package or f"broken-{name}"
    module = package.replace("-", "_")
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[mpdit.samplers]\n{name} = {module}:S\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def run(sampler) -> torch.Tensor:
    return list(sampler.steps(lambda x, t: x, torch.ones(1, 1, 2, 2)))[-1].x_t


def test_every_breakage_is_listed_and_breaks_nothing_else(site: Path):
    for name, (code, _) in BROKEN.items():
        install(site, name, code)
    install(site, "noisy", "print('hello')\n" + HEAD)
    install(site, "fine", HEAD)
    for package in ("twin-a", "twin-b"):
        install(site, "twin", HEAD, package=package)
    reports = {r.package: r for r in survey(kind="samplers")}
    for name, (_, words) in BROKEN.items():
        report = reports[f"broken-{name}"]
        assert (report.status, report.version) == ("broken", "1.2"), report
        assert words in report.reason
        assert report.remedy
    assert reports["broken-noisy"].status == "noisy"
    assert reports["broken-fine"].status == "ok"
    assert reports["twin-a"].status == "broken"
    assert "twin-b 1.2" in reports["twin-a"].reason
    assert [r for r in survey(kind="samplers") if r.package == "mpdit" and r.status != "ok"] == []
    assert run(load_sampler("fine")).shape == (1, 1, 2, 2)
    assert type(load_sampler("euler")).__module__ == "mpdit_core.samplers.euler"
    with pytest.raises(UserError, match=r"twin-a 1\.2 and twin-b 1\.2"):
        load_sampler("twin")


def test_malformed_metadata_is_listed(site: Path):
    """Torch itself does not import beside such a package, so being told which one it is has to do."""
    info = site / "bad_metadata-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-metadata\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mpdit.samplers]\nno equals sign\n")
    report = next(r for r in survey(kind="datasets") if r.package == "bad-metadata")
    assert (report.status, report.version) == ("broken", "1")
    assert "entry_points.txt is malformed" in report.reason
    assert "euler" in plugins.names("samplers")


def test_an_import_that_prints_reaches_nobody(site: Path, capsys):
    install(site, "loud", "print('hello')\n" + HEAD)
    load_sampler("loud")
    assert capsys.readouterr().out == ""


def test_a_call_that_prints_leaves_json_alone(site: Path, tmp_path: Path, capsys):
    install(site, "chatty", HEAD.replace("        x = noise\n", "        x = noise\n        print('chat')\n"))
    write_model(tmp_path / "model")
    arguments = ["sample", str(tmp_path / "model"), "-n", "2", "--sampler", "chatty", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    shown = capsys.readouterr()
    assert "chat" in shown.err.splitlines()
    events = [json.loads(line) for line in shown.out.splitlines()]
    assert events[-1]["images"] == 2
    print("again")  # stdout is as it was
    assert capsys.readouterr().out == "again\n"


@pytest.mark.parametrize(("line", "words"), [("1 / 0", "ZeroDivisionError"), ("import sys; sys.exit()", "sys.exit")])
def test_what_a_call_raises_names_package_and_line(site: Path, line: str, words: str):
    name = f"late-{words.lower().replace('.', '-')}"
    install(site, name, HEAD.replace("        x = noise\n", f"        x = noise\n        {line}\n"))
    with pytest.raises(UserError, match=rf"package broken-{name} 1\.2.*{words}.*line 11"):
        run(load_sampler(name))


def test_an_error_of_the_network_is_not_blamed_on_the_sampler(site: Path):
    install(site, "innocent", HEAD)
    with pytest.raises(KeyError):
        list(load_sampler("innocent").steps(lambda x, t: {}["weights"], torch.ones(1, 1, 2, 2)))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"stepz": 1}, "unknown key"), ({"num_steps": "x"}, "integer"), ({"num_steps": 0}, "least 1")],
)
def test_options_are_checked(site: Path, options: dict, words: str):
    install(site, "optional", HEAD)
    with pytest.raises(UserError, match=words):
        plugins.build("samplers", "optional", options)


def test_a_record_builds_again_or_names_the_missing_package(site: Path):
    install(site, "recorded", HEAD)
    made = plugins.record("samplers", "recorded", plugins.build("samplers", "recorded", {"num_steps": 7}))
    assert (made["package"], made["version"], made["options"]) == ("broken-recorded", "1.2", {"num_steps": 7})
    assert plugins.rebuild(json.loads(json.dumps(made))).num_steps == 7
    with pytest.raises(UserError, match=r"package gone-package 1\.2, which is not installed"):
        plugins.rebuild(made | {"package": "gone-package", "name": "gone"})


def test_a_file_serves_as_a_plugin(tmp_path: Path):
    (tmp_path / "mine.py").write_text(HEAD)
    assert load_sampler(f"{tmp_path}/mine.py:S", num_steps=2).num_steps == 2
    with pytest.raises(UserError, match=r"other\.py does not exist"):
        load_sampler(f"{tmp_path}/other.py:S")


def test_off_leaves_ours(site: Path, monkeypatch: pytest.MonkeyPatch):
    install(site, "extra", HEAD)
    monkeypatch.setenv("MPDIT_PLUGINS", "off")
    assert "euler" in plugins.names("samplers")
    assert "extra" not in plugins.names("samplers")


@pytest.mark.parametrize("name", plugins.names("samplers"))
def test_samplers_keep_the_contract(name: str):
    check_sampler(plugins.load("samplers", name))


def test_a_claim_too_high_is_found():
    claims = type("Claims", (plugins.load("samplers", "euler"),), {"order": 2})
    with pytest.raises(ConformanceError, match="order 2, as claimed"):
        check_sampler(claims)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_new_package_passes_its_own_test_as_written(kind: str, tmp_path: Path):
    folder = new_package(kind, "my-own", folder=tmp_path / "own")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stdout


def test_commands_and_their_mistakes(tmp_path: Path, capsys):
    assert main(["plugins", "show", "euler", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])["plugins"][0]
    assert (shown["package"], shown["options"][0]["name"]) == ("mpdit", "num_steps")
    out = str(tmp_path / "new")
    assert main(["plugins", "new", "sampler", "own", "--out", out]) == 0
    for mistake in (
        ["show", "eulr"],
        ["new", "sampler", "own", "--out", out],
        ["new", "sampler", "Own!", "--out", out],
        ["new", "samplr", "own"],
        ["new", "sampler", "euler"],
    ):
        assert main(["plugins", *mistake]) == 2
        assert capsys.readouterr().err.count("error:") == 1
