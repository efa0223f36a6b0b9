"""Every command line in the documentation is one that mpdit takes; links lead somewhere; docs/cli.md is up to date."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import typer
from launch import run, succeed
from pages import PAGES, ROOT, commands, steps
from PIL import Image

from mpdit_cli import console, fields
from mpdit_cli.fields import read_options
from mpdit_cli.reference import reference


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_read_and_their_options_valid(page: str, monkeypatch: pytest.MonkeyPatch):
    """Each is run until its options are read, without the job."""

    def read_and_leave(*arguments, **options):
        read_options(*arguments, **options)
        raise typer.Exit(0)

    def leave(*_arguments):
        raise typer.Exit(0)

    monkeypatch.setattr(fields, "read_options", read_and_leave)
    monkeypatch.setattr(console, "run", leave)  # of commands without options
    for words in commands(page):
        outcome = run(*words)
        assert outcome.code == 0, (words, outcome.err)


def test_the_readme_shows_every_step():
    assert {words[0] for words in commands("README.md")} >= {
        "encode-latents", "train", "sample", "eval-fid", "profile-flops",
    }  # fmt: skip


SMALL_NETWORK = ("--steps", "1", "--set", "train.batch_size=1", "--set", "model.width=32", "--set", "model.num_heads=2")
SMALLER = {"train": (*SMALL_NETWORK, "--set", "preview.every=0"), "sample": ("-n", "1", "--num-steps", "1")}


def test_the_readme_s_path_of_one_s_own_pictures_makes_the_folders_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for n in range(2):
        Image.fromarray(np.full((70, 90, 3), 100 * n, dtype=np.uint8)).save(f"photos/{n}.png")
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("pictures\n\n")[2].partition("\n\n")[0]
    for line in section.splitlines():
        command, _, comment = line.partition("#")
        name, *words = command.split()[1:]
        succeed(name, *words, *SMALLER.get(name, ()), "--device", "cpu", "--quiet")
        assert Path(comment.split(",")[0].strip()).is_dir(), line


def test_targets_of_make_exist():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {step.words[1] for page in PAGES for step in steps(page) if step.words[:1] == ["make"]}
    assert named
    assert all(re.search(rf"^{target}:", text, re.MULTILINE) for target in named)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    document = ROOT / page
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_command_reference_is_up_to_date():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == reference(), "python -m mpdit_cli.reference > docs/cli.md"
