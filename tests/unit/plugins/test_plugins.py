"""Plugins of every kind of brokenness are contained and listed; options are checked; ours pass the same checks."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from sample_helpers import write_model

from mpdit_cli.app import main
from mpdit_core import load_sampler, plugins
from mpdit_core.api import Features, Item
from mpdit_core.errors import UserError
from mpdit_core.plugins import finding
from mpdit_core.plugins.finding import entries
from mpdit_core.plugins.scaffold import TEMPLATES, new_package
from mpdit_core.plugins.survey import survey
from mpdit_core.runtime.files import read_json
from mpdit_core.testing import ConformanceError, check_dataset, check_features, check_sampler

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


@pytest.fixture
def without_heavy_packages(monkeypatch: pytest.MonkeyPatch):
    """Leaves out installed packages whose import takes seconds, in any process; their own tests load them."""
    every = finding._scan

    def few():
        heavy = ("mpdit-diffusers", "mpdit-dinov2", "mpdit-efficientnet", "mpdit-torchdiffeq")
        return (e for e in every() if e.package not in heavy)

    monkeypatch.setattr(finding, "_scan", few)


def test_every_breakage_is_listed_and_breaks_nothing_else(site: Path, without_heavy_packages):
    for name, (code, _) in BROKEN.items():
        install(site, name, code)
    install(site, "noisy", "print('hello')\n" + HEAD)
    install(site, "fine", HEAD)
    for package in ("twin-a", "twin-b"):
        install(site, "twin", HEAD, package=package)
    listed = survey(kind="samplers")
    reports = {r.package: r for r in listed}
    for name, (_, words) in BROKEN.items():
        report = reports[f"broken-{name}"]
        assert (report.status, report.version) == ("broken", "1.2"), report
        assert words in report.reason
        assert report.remedy
    assert reports["broken-noisy"].status == "noisy"
    assert reports["broken-fine"].status == "ok"
    assert reports["twin-a"].status == "broken"
    assert "twin-b 1.2" in reports["twin-a"].reason
    ours = [r.status for r in listed if r.package == "mpdit"]
    assert len(ours) >= 11
    assert set(ours) == {"ok"}
    assert run(load_sampler("fine")).shape == (1, 1, 2, 2)
    assert type(load_sampler("euler")).__module__ == "mpdit_core.samplers.euler"
    with pytest.raises(UserError, match=r"twin-a 1\.2 and twin-b 1\.2"):
        load_sampler("twin")
    assert run(load_sampler("twin_a:S")).shape == (1, 1, 2, 2)  # as the message says


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


def test_samples_are_gone_on_with_by_the_same_package_only(site: Path, tmp_path: Path, monkeypatch, capsys):
    install(site, "mine", HEAD)
    write_model(tmp_path / "model")
    out = tmp_path / "out"
    arguments = [
        "sample",
        str(tmp_path / "model"),
        "-n",
        "2",
        "--sampler",
        "mine",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    made = read_json(out / "samples.json")["identity"]["sampler"]
    assert (made["package"], made["version"]) == ("broken-mine", "1.2")
    assert "num_steps" in made["options"]
    before = (out / "samples.json").read_bytes()
    metadata = site / "broken_mine-1.2.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "1.3"))
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "sampler.version: 1.2 → 1.3" in said
    assert "pip install 'broken-mine==1.2'" in said
    monkeypatch.setenv("MPDIT_PLUGINS", "off")  # as if it were not installed
    assert main(arguments) == 2
    assert "came from the package broken-mine 1.2, which is not installed" in capsys.readouterr().err
    assert (out / "samples.json").read_bytes() == before


def test_a_file_serves_as_a_plugin(tmp_path: Path):
    (tmp_path / "mine.py").write_text(HEAD)
    assert load_sampler(f"{tmp_path}/mine.py:S", num_steps=2).num_steps == 2
    with pytest.raises(UserError, match=r"other\.py does not exist"):
        load_sampler(f"{tmp_path}/other.py:S")


def test_a_plugin_that_hangs_at_import_is_given_up(site: Path):
    install(site, "hanging", "import time; time.sleep(600)")
    report = survey(kind="samplers", name="hanging", timeout=1.0)[0]
    assert (report.status, report.package) == ("broken", "broken-hanging")
    assert report.reason == "does not finish importing within 1 s"
    assert report.remedy == "pip uninstall broken-hanging"


def test_a_class_of_a_module_serves_as_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`module:Class`, in the working folder or installed, without an entry point."""
    (tmp_path / "a_package_of_mine").mkdir()
    (tmp_path / "a_package_of_mine" / "inner.py").write_text(HEAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sampler = load_sampler("a_package_of_mine.inner:S", num_steps=4)
    assert run(sampler).shape == (1, 1, 2, 2)
    made = plugins.record("samplers", "a_package_of_mine.inner:S", sampler)
    assert made["source"] == str(tmp_path / "a_package_of_mine" / "inner.py")
    assert plugins.rebuild(made).num_steps == 4
    with pytest.raises(UserError, match="No module named 'nowhere'"):
        load_sampler("nowhere.at_all:S")


@pytest.mark.parametrize("decorator", ["@dataclass", "@dataclass(frozen=True)", "@dataclass(slots=True)"])
def test_instances_go_to_other_processes(site: Path, tmp_path: Path, decorator: str):
    """As worker processes get them: pickled by name, loaded anew there, options and guard kept."""
    name = "moving-" + "".join(c for c in decorator if c.isalpha())
    install(site, name, HEAD.replace("@dataclass", decorator))
    (tmp_path / "file.py").write_text(HEAD)
    names = [name, f"{tmp_path}/file.py:S"]
    pickled = pickle.dumps([load_sampler(each, num_steps=7) for each in names])
    code = """if True:
        import pickle, sys
        for sampler in pickle.loads(sys.stdin.buffer.read()):
            print(sampler.num_steps, sampler.mpdit_plugin[1])
            try:
                next(sampler.steps(lambda x, t: x, None))
            except Exception as error:
                print(type(error).__name__)
    """
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, env=env, check=True)
    assert done.stdout.decode().splitlines() == [f"7 {names[0]}", "PluginError", f"7 {names[1]}", "PluginError"]


def test_off_leaves_ours(site: Path, monkeypatch: pytest.MonkeyPatch):
    install(site, "extra", HEAD)
    monkeypatch.setenv("MPDIT_PLUGINS", "off")
    assert "euler" in plugins.names("samplers")
    assert "extra" not in plugins.names("samplers")


@pytest.mark.parametrize("name", [entry.name for entry in entries("samplers") if entry.is_ours])
def test_samplers_keep_the_contract(name: str):
    sampler = plugins.load("samplers", name)
    assert check_sampler(sampler).order >= sampler.order - 0.15


@pytest.mark.parametrize("name", ["euler", "euler-maruyama"])
def test_a_claim_too_high_is_found(name: str):
    claims = type("Claims", (plugins.load("samplers", name),), {"order": 2})
    with pytest.raises(ConformanceError, match="order 2, as claimed"):
        check_sampler(claims)


def test_a_sampler_that_draws_its_own_noise_is_measured_from_samples():
    class Own(plugins.load("samplers", "euler-maruyama")):
        def steps(self, velocity_fn, noise, generator=None):
            if callable(generator):
                raise TypeError("not a generator")
            return super().steps(velocity_fn, noise, generator)

    check_sampler(Own)


def test_new_packages_pass_their_own_tests_as_written(tmp_path: Path):
    folders = [new_package(kind, f"my-{kind}", folder=tmp_path / kind) for kind in TEMPLATES]
    tests = [str(folder / "tests") for folder in folders]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


# --- the checks themselves: what is right passes, what is wrong is found -------------------------------------------
# (each shipped package's own tests check its classes; tests/test_eval_fid.py checks the features "inception")


@dataclass
class Squares:
    fault: str = ""

    def class_names(self):
        return ["a", "a"] if self.fault == "names" else ["a", "b"]

    def items(self):
        keys = [0, 0, 1] if self.fault == "keys" else [0, 1, 2]
        if self.fault == "order":
            random.shuffle(keys)
        return [Item(f"{key}", 2 if self.fault == "labels" else key % 2) for key in keys]

    def image(self, index):
        return Image.new("L", (8, 8), random.randrange(256) if self.fault == "pictures" else index)

    def fingerprint(self):
        return f"{id(self)}" if self.fault == "fingerprint" else "squares"


def test_a_bad_data_set_is_found():
    check_dataset(Squares())
    for fault, words in {
        "names": "no class name twice", "keys": "no key twice", "order": "the same items", "labels": "labels as int",
        "pictures": "to be the same every time", "fingerprint": "the same fingerprint",
    }.items():  # fmt: skip
        random.seed(1)
        with pytest.raises(ConformanceError, match=words):
            check_dataset(Squares(fault))


@dataclass
class Means:
    name: ClassVar[str] = "means"
    fault: str = ""

    def load(self, device):
        pass

    def __call__(self, images):
        x = images.float().mean(dim=(2, 3))
        if self.fault == "batch":
            x = x - x.mean(dim=0)
        if self.fault == "chance":
            x = x + torch.randn_like(x)
        if self.fault == "autocast":
            x = x @ torch.full((3, 3), 0.3)
        if self.fault == "same":
            x = torch.ones_like(x)
        if self.fault == "half":
            x = x.half()
        return Features(pool=x / 0 if self.fault == "infinite" else x)

    def fingerprint(self):
        return str(random.random()) if self.fault == "fingerprint" else "means"


def test_a_bad_extractor_is_found():
    check_features(Means())
    for fault, words in {
        "batch": "whatever the batch size", "chance": "the same the second time", "autocast": "under autocast",
        "same": "other features for other images", "half": "float32", "infinite": "finite",
        "fingerprint": "the same fingerprint",
    }.items():  # fmt: skip
        with pytest.raises(ConformanceError, match=words):
            check_features(Means(fault=fault))


def test_commands_and_their_mistakes(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(HEAD + "    power: float = option(1.0, 'of the times')\n")
    assert main(["plugins", "show", "euler", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])["plugins"][0]
    assert (shown["package"], shown["options"][0]["name"]) == ("mpdit", "num_steps")
    assert main(["plugins", "show", "./mine.py:S"]) == 0
    text = capsys.readouterr().out
    assert "--num-steps" in text  # which is how `mpdit sample` takes it
    assert "sampler.num_steps" not in text
    assert "sampler.power" in text
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
