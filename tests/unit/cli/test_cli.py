"""The command line as a whole: quick help, exit codes, errors for people and programs."""

from __future__ import annotations

import pickle
import signal
from pathlib import Path

import pytest
from launch import forked, kill_when, run, run_python, succeed

import mpdit_core.demo
from mpdit_cli.app import COMMANDS
from mpdit_core import __version__
from mpdit_core.errors import Interrupted, UserError

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "diffusers", "datasets", "numpy", "PIL", "huggingface_hub", "scipy", "jinja2")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom mpdit_cli.app import main\nassert main(['--help']) == 0\n"
        f"heavy = set({HEAVY}) & set(sys.modules)\nassert not heavy, heavy"
    )
    done = run_python("-c", code)
    assert done.code == 0, done.err
    assert all(name in done.out for name in COMMANDS)


def test_as_a_module_it_imports_nothing_heavy_either():
    done = run_python("-X", "importtime", "-m", "mpdit_cli", "--version")
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert not imported & set(HEAVY)


def test_counting_a_preset_does_without_torch():
    done = run_python("-X", "importtime", "-m", "mpdit_cli", "profile-flops", "--preset", "xl-256")
    assert "xl-256" in done.out
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.err.splitlines()}


def test_version():
    assert succeed("--version").out.strip() == f"mpdit {__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_common_options(command):
    shown = succeed(command, "--help").out
    assert "--json" in shown
    assert "--quiet" in shown


@pytest.mark.parametrize("words", [["trian"], ["train", "--presett", "tiny"], ["train", "--steps", "many"], ["sample"]])
def test_a_command_line_that_cannot_be_read_exits_with_2(words):
    assert run(*words).code == 2
    outcome = run(*words, "--json")
    assert (outcome.code, outcome.result["event"], outcome.result["code"]) == (2, "error", "usage")
    assert "Traceback" not in outcome.err


@pytest.fixture
def failing(monkeypatch):
    """Makes `mpdit demo` raise."""

    def fail_with(error: BaseException) -> None:
        def job(*_args, **_options):
            raise error

        monkeypatch.setitem(vars(mpdit_core.demo), "demo", job)  # in place of the name that is imported lazily

    return fail_with


def test_a_user_error_is_one_message_and_the_last_json_line(failing):
    failing(UserError("the disk is full", code="disk-full", expected="room", remedy="free some"))
    outcome = run("demo", "--json")
    assert outcome.code == 2
    assert outcome.err.startswith("error: the disk is full")
    assert "Traceback" not in outcome.err
    assert outcome.result == {
        "event": "error", "code": "disk-full", "what": "the disk is full", "expected": "room", "remedy": "free some",
    }  # fmt: skip


def test_a_defect_exits_with_1_and_a_traceback(failing):
    failing(ZeroDivisionError("oh"))
    outcome = run("demo", "--json")
    assert (outcome.code, outcome.result["code"]) == (1, "defect")
    assert "Traceback" in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "remedy"),
    [
        (Interrupted(15), 143, "mpdit demo --steps 3 --json"),
        (Interrupted(15, remedy="type this"), 143, "type this"),
        (KeyboardInterrupt(), 130, "mpdit demo --steps 3 --json"),
    ],
)
def test_a_signal_exits_with_128_and_its_number_and_says_how_to_resume(failing, error, code, remedy):
    failing(error)
    outcome = run("demo", "--steps", "3", "--json")
    assert (outcome.code, outcome.result["code"], outcome.result["remedy"]) == (code, "interrupted", remedy)
    assert f"stopped; to resume: {remedy}" in outcome.err


class Strange(BaseException):
    pass


@pytest.mark.parametrize("error", [Strange("x"), GeneratorExit("x"), MemoryError()])
def test_what_only_foreign_code_raises_is_no_defect_of_ours(failing, error):
    failing(error)
    outcome = run("demo", "--json")
    assert (outcome.code, outcome.result["code"]) == (2, "out-of-memory" if str(error) == "" else "broken-plugin")
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("words", ["ls LONG", "train --run LONG", "eval-fid LONG", "report LONG"])
def test_a_path_that_the_system_refuses_is_no_defect_of_ours(words):
    outcome = run(*words.replace("LONG", "a" * 300).split(), "--json")
    assert (outcome.code, outcome.result["code"]) == (2, "refused-by-system")


def test_names_in_messages_cannot_act(failing):
    failing(UserError("\x1b[2J\nTraceback (most recent call last):\udce9", remedy="a\nb"))
    outcome = run("demo", "--json")
    assert outcome.err == "error: \\x1b[2J\\n(text of a traceback):\\udce9\n  remedy:   a\\nb\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_a_command_in_the_middle(name, tmp_path, monkeypatch):
    signum, started = getattr(signal, name), tmp_path / "started"

    def demo(*_, **__):
        started.touch()
        signal.pause()

    monkeypatch.setitem(vars(mpdit_core.demo), "demo", demo)
    with forked("demo", "--json") as process:
        assert kill_when(process, started.exists, signum=signum).code == 128 + signum


def test_user_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(UserError("what", code="a-code", expected="this", remedy="that")))
    assert (error.what, error.code, error.expected, error.remedy) == ("what", "a-code", "this", "that")
