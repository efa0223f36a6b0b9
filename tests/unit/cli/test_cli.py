"""The command line as a whole: quick help, exit codes, documents that match it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from mpdit_cli.app import COMMANDS, build_app, main
from mpdit_core import __version__
from mpdit_core.errors import Interrupted, UserError

ROOT = Path(__file__).parents[3]


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom mpdit_cli.app import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'diffusers', 'datasets', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"mpdit {__version__}"
    assert f'"{__version__}"' in (ROOT / "mpdit_core" / "__init__.py").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_common_options(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "--quiet" in shown


def test_unknown_command_and_option_exit_with_2(capsys):
    assert main(["trian"]) == 2
    assert main(["train", "--presett", "tiny"]) == 2
    assert "No such" in capsys.readouterr().err


def test_a_user_error_is_one_message_and_the_last_json_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--preset", "xl-257", "--json"]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    last = json.loads(shown.out.splitlines()[-1])
    assert last["event"] == "error"
    assert "xl-256" in last["remedy"]


def test_a_defect_exits_with_1_and_a_traceback(capsys, monkeypatch):
    monkeypatch.setitem(COMMANDS, "demo", "demo")

    def broken(*args, **kwargs):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("mpdit_core.demo.demo", broken)
    assert main(["demo"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_signal_exits_with_128_and_its_number(monkeypatch):
    def interrupted(*args, **kwargs):
        raise Interrupted(15)

    monkeypatch.setattr("mpdit_core.demo.demo", interrupted)
    assert main(["demo"]) == 143


def test_user_errors_survive_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(UserError("what", expected="this", remedy="that")))
    assert (error.what, error.expected, error.remedy) == ("what", "this", "that")


def commands_in(document: Path) -> list[list[str]]:
    """The words of every `mpdit …` line in the document's code."""
    import shlex

    found = []
    for line in document.read_text().splitlines():
        if match := re.match(r"\s*(?:\$ )?(mpdit [a-z][^#`]*?)(?:\s{2,}#.*)?$", line):
            found.append(shlex.split(match.group(1))[1:])
    return found


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_commands_in_documents_exist(document):
    root = typer.main.get_command(build_app())
    for words in commands_in(ROOT / document):
        if words and words[0] in COMMANDS and "…" not in " ".join(words):
            command = root.commands[words[0]]
            if not hasattr(command, "commands"):
                command.make_context(words[0], list(words[1:]), resilient_parsing=False)
    if document == "README.md":
        assert len(commands_in(ROOT / document)) >= 5


def test_links_in_documents_lead_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_command_reference_is_up_to_date():
    from mpdit_cli.reference import reference

    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "python -m mpdit_cli.reference > docs/cli.md"
