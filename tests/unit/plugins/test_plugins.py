"""Plugins of every kind of brokenness are contained and listed; options are checked; ours pass the same checks."""

from __future__ import annotations

import inspect
import json
import runpy
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plugin_site
import pytest
import torch
from launch import run, run_python, succeed

from mpdit_core import api, load_sampler, plugins
from mpdit_core.api import Features, Item
from mpdit_core.data.sources import classes_and_fingerprint, count_items, read_items
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.flow.integrate import integrate
from mpdit_core.metrics.features import extract
from mpdit_core.plugins import PluginError, errors, finding, list_plugins, plugin_errors, show_plugin
from mpdit_core.plugins.job import PluginReport
from mpdit_core.plugins.scaffold import GROUPS

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
            x = x - velocity_fn(x, 1 - n / self.num_steps) / self.num_steps
            yield Step(1 - (n + 1) / self.num_steps, x)
"""

DATA = """
from dataclasses import dataclass
@dataclass
class S:
    def class_names(self): ...
    def items(self): ...
    def image(self, index): ...
    def fingerprint(self): ...
"""

COMMAND = """
from types import SimpleNamespace
from mpdit_core.settings import Options, Result
class O(Options): pass
S = SimpleNamespace(options=O, job=lambda options, *, report: Result(), help="Play.")
"""

# what is wrong: (module, what the list says of it)
BROKEN = {
    "no-import": ("import (", "SyntaxError"),
    "missing-library": ("import a_library_nobody_has", "a_library_nobody_has"),
    "raises": ("raise RuntimeError('cannot start')", "RuntimeError: cannot start"),
    "exits": ("import sys; sys.exit(3)", "sys.exit(3)"),
    "ends-a-generator": ("raise GeneratorExit('enough')", "GeneratorExit: enough"),
    "base-exception": ("raise BaseException('odd')", "BaseException: odd"),
    "wrong-type": ("S = 3", "of type int"),
    "not-dataclass": ("class S: pass", "the class S"),
    "no-attribute": ("T = 3", "AttributeError"),
    "other-api": (HEAD + "    plugin_api = 99\n", "version 99"),
    "no-steps": (HEAD.replace("def steps", "def stops"), "lacks steps()"),
    "bad-arguments": (HEAD.replace(", generator=None", ""), "does not take the 3 arguments"),
    "bad-type": (HEAD + "    other: 'Nowhere' = 3\n", "types of its options"),
    "euler": (HEAD, "also offered by mpdit "),
}


def install(site: Path, name: str, code: str, *, package: str = "", group: str = "mpdit.samplers") -> None:
    plugin_site.install(site, name, code, package=package or f"broken-{name}", group=group)


def final(sampler, velocity_fn=lambda x, t: x) -> torch.Tensor:
    return integrate(sampler, velocity_fn, torch.ones(1, 1, 2, 2))


def reports(kind: str = "samplers") -> dict[str, PluginReport]:
    """By package."""
    return {report.package: report for report in list_plugins().plugins if report.kind == kind}


@pytest.fixture
def without_heavy_packages(monkeypatch: pytest.MonkeyPatch):
    """Leaves out installed packages whose import takes seconds; their own tests load them."""
    every = finding._scan

    def few():
        heavy = ("mpdit-diffusers", "mpdit-dinov2", "mpdit-efficientnet", "mpdit-torchdiffeq")
        return (e for e in every() if e.package not in heavy)

    monkeypatch.setattr(finding, "_scan", few)


def test_every_breakage_is_listed_and_breaks_nothing_else(site: Path, without_heavy_packages, capsys):
    for name, (code, _) in BROKEN.items():
        install(site, name, code)
    install(site, "noisy", "import sys\nprint('hello')\nprint('there', file=sys.stderr)\n" + HEAD)
    install(site, "fine", HEAD)
    for package in ("twin-a", "twin-b"):
        install(site, "twin", HEAD, package=package)
    found = reports()
    for name, (_, words) in BROKEN.items():
        report = found[f"broken-{name}"]
        assert (report.status, report.version) == ("broken", "1.2"), report
        assert words in report.reason
        assert report.remedy
    assert found["broken-noisy"].status == "noisy"
    assert found["broken-fine"].status == "ok"
    assert found["twin-a"].status == "broken"
    assert "twin-b 1.2" in found["twin-a"].reason
    listed = list_plugins()
    assert listed.broken == len(BROKEN) + 2
    ours = [r.status for r in listed.plugins if r.package == "mpdit" and r.kind == "samplers"]
    assert len(ours) >= 11
    assert set(ours) == {"ok"}
    assert final(load_sampler("fine")).shape == (1, 1, 2, 2)
    assert type(load_sampler("euler")).__module__ == "mpdit_core.samplers.euler"
    with pytest.raises(UserError, match=r"twin-a 1\.2 and twin-b 1\.2") as caught:
        load_sampler("twin")
    assert caught.value.code == "ambiguous-plugin"
    assert final(load_sampler("twin_a:S")).shape == (1, 1, 2, 2)  # as the message says
    assert capsys.readouterr() == ("", "")
    shown = run("plugins").out
    assert "broken-raises 1.2: RuntimeError: cannot start" in shown
    assert "remedy: pip install a_library_nobody_has" in shown


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
def test_a_stop_while_the_list_is_made_is_no_fault_of_a_plugin(site: Path, error: type, without_heavy_packages):
    argument = "15" if error is Interrupted else ""
    install(site, "stopped", f"from mpdit_core.errors import Interrupted\nraise {error.__name__}({argument})")
    with pytest.raises(error):
        list_plugins()


def test_malformed_metadata_is_listed(site: Path, without_heavy_packages):
    """Torch itself does not import beside such a package, so to be told which one it is must do."""
    info = plugin_site.write_metadata(site, "bad-metadata", {})
    (info / "entry_points.txt").write_text("[mpdit.samplers]\nno equals sign\n")
    report = reports("?")["bad-metadata"]
    assert (report.status, report.version) == ("broken", "1.2")
    assert "entry_points.txt is malformed" in report.reason
    assert "euler" in plugins.names("samplers")
    done = run_python("-m", "mpdit_cli", "ls", "--json", cwd=site, env={"PYTHONPATH": str(site)})
    assert done.result["entries"] == []  # pydantic looks for plugins of its own there, unless it is told not to


def test_an_import_that_prints_reaches_nobody(site: Path, capsys):
    install(site, "loud", "print('hello')\n" + HEAD)
    load_sampler("loud")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("line", "words"), [("1 / 0", "ZeroDivisionError"), ("import sys; sys.exit()", "sys.exit")])
def test_what_a_call_raises_names_package_and_line(site: Path, line: str, words: str):
    name = f"late-{words.lower().replace('.', '-')}"
    install(site, name, HEAD.replace("        x = noise\n", f"        x = noise\n        {line}\n"))
    with pytest.raises(PluginError, match=rf"package broken-{name} 1\.2.*{words}.*line 11"):
        final(load_sampler(name))


# --- whose fault it is ------------------------------------------------------------------------------------------------

CALLS = """
import json
import torch
from dataclasses import dataclass
from mpdit_core.api import draw_noise
@dataclass
class S:
    order = 1
    stochastic = False
    num_steps: int = 3
    def steps(self, velocity_fn, noise, generator=None):
        return iter([velocity_fn(noise, 1.0)])
    def own(self):
        return {}["own"]
    def library(self):
        return json.loads("{")
    def torch(self):
        return torch.ones(2) @ torch.ones(3)
    def api(self, like):
        return draw_noise(like, [])
    def leave(self):
        raise SystemExit(5)
    def refuse(self):
        from mpdit_core.api import UserError
        raise UserError("no weights", code="no-weights")
    def memory(self):
        raise torch.OutOfMemoryError("full")
    def out(self):
        raise KeyboardInterrupt
    def pixels(self):
        from mpdit_core.api import to_range
        return to_range(None)
"""


@pytest.fixture(params=["package", "file"])
def calls(request, site: Path, tmp_path: Path):
    if request.param == "package":
        install(site, "calls", CALLS)
        return load_sampler("calls")
    (tmp_path / "calls.py").write_text(CALLS)
    return load_sampler(f"{tmp_path}/calls.py:S")


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("own", (), r"KeyError: 'own' \(\w+\.py, line 14\)"),
        ("library", (), r"JSONDecodeError.*line 16\)"),
        ("torch", (), r"RuntimeError.*line 18\)"),
        ("api", (torch.ones(3, 1),), r"ValueError.*line 20\)"),  # our helper, called wrongly
        ("pixels", (), r"AttributeError.*line 32\)"),  # one in another file
        ("leave", (), r"sys\.exit\(5\).*line 22\)"),
        ("steps", (), "TypeError"),
        ("nothing", (), "AttributeError"),
    ],
)
def test_the_plugin_is_to_blame(calls, method, arguments, words):
    with pytest.raises(PluginError, match=words) as caught, plugin_errors(calls, "in a call"):
        getattr(calls, method)(*arguments)
    assert caught.value.code == "broken-plugin"
    assert "calls" in caught.value.label


def missing_weights(x, t):
    return {}["weights"]


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("refuse", (), UserError),
        ("memory", (), torch.OutOfMemoryError),
        ("out", (), KeyboardInterrupt),
        ("steps", (missing_weights, None), KeyError),
        ("steps", (lambda x, t: torch.ones(2) @ torch.ones(3), None), RuntimeError),
    ],
)
def test_what_is_not_its_fault_passes_as_it_is(calls, method, arguments, error):
    with pytest.raises(error) as caught, plugin_errors(calls, "in a call"):
        getattr(calls, method)(*arguments)
    assert not isinstance(caught.value, PluginError)


def test_an_error_of_the_network_is_not_blamed_on_the_sampler(calls):
    from mpdit_core.flow.guidance import Guidance, GuidedVelocity

    def network(x_t, t, labels):
        return {}["weights"]

    velocity = GuidedVelocity(network, torch.tensor([1]), null_label=2, guidance=Guidance())
    with pytest.raises(KeyError):
        integrate(calls, velocity, torch.ones(1, 1, 2, 2))


def test_an_error_of_an_installed_mpdit_is_not_blamed_on_the_sampler(calls, tmp_path: Path, monkeypatch):
    core = tmp_path / "site-packages" / "mpdit_core"
    core.mkdir(parents=True)
    (core / "network.py").write_text("def velocity(x, t):\n    return {}['weights']\n")
    monkeypatch.setattr(errors, "CORE", core)
    with pytest.raises(KeyError), plugin_errors(calls, "in a call"):
        calls.steps(runpy.run_path(str(core / "network.py"))["velocity"], None)


def test_the_files_of_all_helpers_are_listed():
    names = [getattr(api, name) for name in api.__all__]
    assert {Path(inspect.getfile(helper)) for helper in names if inspect.isfunction(helper)} == errors.CALLED_BY_PLUGINS


def test_ours_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), plugin_errors(load_sampler("euler"), "in steps"):
        divmod(1, 0)


@pytest.mark.parametrize(
    ("options", "code"),
    [({"stepz": 1}, "unknown-key"), ({"num_steps": "x"}, "invalid-value"), ({"num_steps": 0}, "invalid-value")],
)
def test_options_are_checked(site: Path, options: dict, code: str):
    install(site, "optional", HEAD)
    with pytest.raises(UserError) as caught:
        plugins.build("samplers", "optional", options)
    assert caught.value.code == code


def test_what_a_plugin_says_of_its_own_options_is_a_user_error(site: Path):
    install(site, "picky", HEAD + "    def __post_init__(self):\n        raise ValueError('an odd number')\n")
    with pytest.raises(UserError, match="an odd number") as caught:
        plugins.build("samplers", "picky")
    assert caught.value.code == "invalid-value"
    install(site, "faulty", HEAD + "    def __post_init__(self):\n        {}['key']\n")
    with pytest.raises(PluginError, match="to start: KeyError"):
        plugins.build("samplers", "faulty")


def test_a_record_builds_again_or_names_the_missing_package(site: Path):
    install(site, "recorded", HEAD)
    made = plugins.record("samplers", "recorded", plugins.build("samplers", "recorded", {"num_steps": 7})).as_json()
    assert (made["package"], made["version"], made["options"]) == ("broken-recorded", "1.2", {"num_steps": 7})
    assert plugins.rebuild(json.loads(json.dumps(made))).num_steps == 7
    for other in (made | {"package": "gone-package", "name": "gone"}, made | {"package": "gone-package"}):
        with pytest.raises(UserError, match=r"package gone-package 1\.2") as caught:
            plugins.rebuild(other)
        assert caught.value.code == "other-package"


def test_a_file_serves_as_a_plugin(tmp_path: Path):
    (tmp_path / "mine.py").write_text(HEAD)
    assert load_sampler(f"{tmp_path}/mine.py:S", num_steps=2).num_steps == 2
    with pytest.raises(UserError) as caught:
        load_sampler(f"{tmp_path}/other.py:S")
    assert caught.value.code == "no-such-file"


def test_a_class_of_a_module_serves_as_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`module:Class`, in the working folder or installed, without an entry point."""
    (tmp_path / "a_package_of_mine").mkdir()
    (tmp_path / "a_package_of_mine" / "inner.py").write_text(HEAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sampler = load_sampler("a_package_of_mine.inner:S", num_steps=4)
    assert final(sampler).shape == (1, 1, 2, 2)
    made = plugins.record("samplers", "a_package_of_mine.inner:S", sampler).as_json()
    assert made["source"] == str(tmp_path / "a_package_of_mine" / "inner.py")
    assert plugins.rebuild(made, trusted=True).num_steps == 4
    with pytest.raises(PluginError, match="No module named 'nowhere'"):
        load_sampler("nowhere.at_all:S")


def test_off_leaves_ours(site: Path, monkeypatch: pytest.MonkeyPatch):
    install(site, "extra", HEAD)
    monkeypatch.setenv("MPDIT_PLUGINS", "off")
    assert "euler" in plugins.names("samplers")
    assert "extra" not in plugins.names("samplers")
    with pytest.raises(UserError, match="MPDIT_PLUGINS=off") as caught:
        load_sampler("extra")
    assert caught.value.code == "no-such-plugin"


@pytest.mark.parametrize("kind", GROUPS)
def test_a_new_package_passes_its_own_test_as_written(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    name = f"my-{kind}"
    folder = plugins.new_plugin(kind, name, tmp_path / kind).path
    monkeypatch.syspath_prepend(str(folder))
    checks = runpy.run_path(str(next((folder / "tests").glob("test_*.py"))))
    tests = [check for key, check in checks.items() if key.startswith("test_")]
    assert tests
    for check in tests:
        check()
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (value,) = (declared[name] for declared in project["entry-points"].values())
    assert value.split(":")[1] in checks


def test_commands_and_their_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(HEAD + "    power: float = option(1.0, 'exponent of the times')\n")
    shown = succeed("plugins", "show", "euler", "--json").result["plugins"][0]
    assert (shown["package"], shown["options"][0]["name"]) == ("mpdit", "num_steps")
    assert shown["facts"] == {"order": 1, "stochastic": False}
    text = succeed("plugins", "show", "./mine.py:S").out
    assert "--num-steps" in text  # which is how `mpdit sample` takes it
    assert "sampler.num_steps" not in text
    assert "sampler.power" in text
    assert show_plugin("alignment").plugins[0].facts == {"needs": ("teacher",)}
    made = succeed("plugins", "new", "sampler", "own", "--out", "new", "--json").result
    assert (made["kind"], made["name"]) == ("sampler", "own")
    for code, *words in (
        ("no-such-plugin", "show", "eulr"),
        ("folder-in-use", "new", "sampler", "own", "--out", "new"),
        ("invalid-value", "new", "sampler", "Own!", "--out", "new"),
        ("no-such-kind", "new", "samplr", "own"),
        ("name-in-use", "new", "sampler", "euler"),
    ):
        outcome = run("plugins", *words, "--json")
        assert (outcome.code, outcome.result["code"]) == (2, code)
    with pytest.raises(UserError, match="did you mean euler"):
        show_plugin("eulr")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (HEAD.replace("def steps", "def stops"), r"^sampler .* lacks steps\(\)"),
        (DATA.replace("def fingerprint", "def hash"), r"^data set .* lacks fingerprint\(\)"),
        (DATA.replace("image(self, index)", "image(self)"), r"^data set .*image does not take the 1 arguments"),
        (COMMAND.replace("job=", "jobs="), "^command .*its attribute job"),
        ("S = 3", "of type int"),
        ("class S: pass", "the class S"),
    ],
)
def test_a_class_that_fulfils_no_contract_is_shown_with_what_it_lacks_of_the_nearest(tmp_path, code: str, words: str):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(PluginError, match=words):
        show_plugin(f"{tmp_path}/mine.py:S")


# --- commands ---------------------------------------------------------------------------------------------------------


def test_commands_are_found_without_loading(site: Path, without_heavy_packages, monkeypatch: pytest.MonkeyPatch):
    broken = COMMAND.replace("job=", "jobs=")
    for letter, name, code in (
        ("a", "play", COMMAND), ("b", "train", "1 / 0"), ("c", "twin", COMMAND), ("d", "twin", COMMAND),
        ("e", "no-job", broken),
    ):  # fmt: skip
        install(site, name, code, package=f"play-{letter}", group="mpdit.commands")
    found = [entry.name for entry in plugins.command_entries() if entry.package.startswith("play-")]
    assert found == ["no-job", "play", "train"]
    assert "play_a" not in sys.modules
    assert plugins.load("commands", "play").help == "Play."
    with pytest.raises(UserError, match="its attribute job") as caught:
        plugins.load("commands", "no-job")
    assert caught.value.code == "broken-plugin"
    listed = reports("commands")
    assert (listed["play-a"].status, listed["play-a"].summary) == ("ok", "Play.")
    assert [listed[f"play-{letter}"].status for letter in "bcde"] == ["broken"] * 4
    monkeypatch.setenv("MPDIT_PLUGINS", "off")
    assert not plugins.command_entries()


# --- what plugins return ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["raise GeneratorExit", "raise BaseException('odd')", "yield 3", "yield Step(1, 0)"])
def test_what_a_sampler_raises_or_yields(site: Path, line: str):
    name = f"odd-{abs(hash(line))}"
    install(site, name, HEAD.replace("        x = noise\n", f"        x = noise\n        {line}\n"))
    with pytest.raises(UserError) as caught:
        final(load_sampler(name))
    assert caught.value.code == "broken-plugin"


@pytest.mark.parametrize(
    "returned",
    [
        3, Features._make([None, None, None]), Features._make([[1.0], None, None]), Features(torch.ones(2), None, None),
        Features(torch.ones(3, 4), None, None), Features(torch.ones(2, 4, dtype=torch.int64), None, None),
        Features(torch.ones(2, 0), None, None), Features(torch.ones(2, 4), None, torch.ones(2, 1, 1)),
    ],
)  # fmt: skip
def test_what_features_return(returned: object):
    class Odd:
        name = "odd"

        def __call__(self, images: torch.Tensor) -> object:
            return returned

    with pytest.raises(UserError) as caught:
        extract(Odd(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8))  # pyright: ignore[reportArgumentType]
    assert caught.value.code == "broken-plugin"


@dataclass
class OddData:
    """A data set that returns `what` from one method."""

    method: str
    what: object

    def class_names(self) -> object:
        return self.what if self.method == "class_names" else ["a"]

    def items(self) -> object:
        return self.what if self.method == "items" else [Item("x", 0)]

    def image(self, index: int) -> object:
        return self.what

    def fingerprint(self) -> object:
        return self.what if self.method == "fingerprint" else "1"


@pytest.mark.parametrize(
    ("method", "what"),
    [("class_names", [1]), ("fingerprint", 5), ("items", 3), ("items", [("x", 0)]), ("items", [Item._make(["x", "0"])]),
     ("items", [Item._make([0, 0])]), ("image", b"png"), ("image", None)],
)  # fmt: skip
def test_what_a_data_set_returns(method: str, what: object):
    dataset: Any = OddData(method, what)

    def use() -> None:
        classes_and_fingerprint(dataset)
        for _, decode in read_items(dataset, 0, count_items(dataset)):
            decode()

    with pytest.raises(UserError) as caught:
        use()
    assert caught.value.code == "broken-plugin"
