"""What the console prints: events, tables and results for people, and JSON lines for programs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from launch import run_python
from rich.console import Console

from mpdit_cli import console
from mpdit_cli.panel import TrainPanel
from mpdit_core.reporting import Note, Progress, Saved, Skipped, Step, Warning
from mpdit_core.settings import Result, setting
from mpdit_core.table import Table

STEP = Step(
    step=3, total_steps=9, loss=0.5, grad_norm=1.0, learning_rate=1e-4, images_seen=24, images_per_second=7.0,
    extra={"mfu": 0.41, "memory_bytes": 2.0**30},
)  # fmt: skip


class Pie(Result):
    """What the job below returns."""

    slices: int = setting(..., "number of slices")
    plate: Path = setting(..., "where it lies")
    rest: float = setting(float("nan"), "what is left")


def bake(slices: int, *, report) -> Pie:
    """A job that reports one of each event, and prints as a library might."""
    report(Progress(task="bake", done=1, total=2, unit="pies"))
    report(STEP)
    report(Note(text="it smells good"))
    report(Warning(code="hot", text="the plate is hot"))
    report(Saved(what="pie", path=Path("pie")))
    report(Skipped(path="peach", reason="it is bad"))
    print("a library prints")
    return Pie(slices=slices, plate=Path("plate"))


PARTS = (
    Table(title="Pies", columns=["name", "slices"], rows=[["plum", "12"]], note="a note"),
    console.Summary(title="done", rows={"slices": "12"}, next_command="mpdit eat"),
)


@pytest.fixture
def baked(capsys, monkeypatch):
    """What is printed by the job and its result: (stdout, stderr)."""

    def run(**settings) -> tuple[str, str]:
        console.configure(json=settings.get("json", False), quiet=settings.get("quiet", False))
        monkeypatch.setenv("RANK", str(settings.get("rank", 0)))
        console.show(console.run(bake, 12), *PARTS)
        return capsys.readouterr()

    yield run
    console.configure(json=False, quiet=False)


def test_for_people(baked):
    out, err = baked()
    for text in ("bake: 1/2 pies", "loss 0.5000", "it smells good", "warning: the plate is hot", "pie: pie",
                 "skipped peach: it is bad", "a library prints", "plum", "a note", "next:  mpdit eat"):  # fmt: skip
        assert text in out
    assert err == ""


def test_as_json_stdout_holds_nothing_else(baked):
    out, err = baked(json=True)
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == [
        "progress", "step", "note", "warning", "saved", "skipped", "result",
    ]  # fmt: skip
    assert events[-1] == {"event": "result", "slices": 12, "plate": "plate", "rest": None}
    assert "a library prints" in err
    assert "it smells good" in err
    print("afterwards stdout is as it was")


def test_quiet_leaves_warnings_only(baked):
    out, _ = baked(quiet=True)
    assert out.splitlines() == ["warning: the plate is hot", "a library prints"]
    assert [json.loads(line)["event"] for line in baked(quiet=True, json=True)[0].splitlines()] == ["warning", "result"]


def test_with_json_stdout_is_ours_even_where_descriptor_1_is_written_to():
    code = (
        "import ctypes, os, mpdit_core.demo\nfrom mpdit_cli.app import main\n"
        "def demo(*a, **k):\n    os.write(1, b'raw\\n'); os.system('echo child')\n"
        "    ctypes.CDLL(None).puts(b'from C')\n    raise SystemError('end')\n"
        "mpdit_core.demo.demo = demo\nmain(['demo', '--json'])"
    )
    outcome = run_python("-c", code)
    assert [event["event"] for event in outcome.events] == ["error"]
    assert all(word in outcome.err for word in ("raw", "child", "from C"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢 \u00a0 text", "plain é 漢 \u00a0 text"),
        ("\x1b[31mred\x07\r", "\\x1b[31mred\\x07\\r"),
        ("a\nb", "a\\nb"),
        ("\u202egnp.exe\u2028", "\\u202egnp.exe\\u2028"),
        ("caf\udce9", "caf\\udce9"),
        ("Traceback (most recent call last):", "(text of a traceback):"),
    ],
)
def test_what_could_act_on_a_terminal_or_its_reader_is_shown_harmless(text, shown):
    assert console.clean(text) == shown
    assert console.clean("a\nb", lines=True) == "a\nb"


def test_on_a_terminal_a_job_has_a_bar_then_the_panel(monkeypatch):
    drawn = io.StringIO()
    monkeypatch.setattr(console, "_console_for_people", lambda: Console(file=drawn, force_terminal=True, width=80))

    def train(*, report) -> Pie:
        report(Progress(task="encode", done=2, total=4, unit="images"))
        report(Progress(task="encode", done=0, total=4, unit="images"))  # in the next run of a sweep
        report(STEP)
        report(Progress(task="preview", done=1, total=2, unit="images"))
        report(Saved(what="preview", path=Path("step-3.png")))
        return Pie(slices=1, plate=Path("plate"))

    console.run(train)
    for text in ("encode", "0/4", "step 3 of 9", "last preview", "preview: 1/2 images"):
        assert text in drawn.getvalue()


def test_on_a_terminal_text_breaks_between_words_and_paths_stay_whole(capsys, monkeypatch):
    wide = Console(force_terminal=True, width=40, color_system=None, legacy_windows=False)
    monkeypatch.setattr(console, "_console_for_people", lambda: wide)
    value = f"ten words that do not fit in one line and {'p' * 50}"
    console.show(Pie(slices=1, plate=Path("plate")), console.Summary(title="done", rows={"slices": value}))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "done", "  slices  ten words that do not fit in", "          one line and", f"          {'p' * 50}"
    ]  # fmt: skip


def test_of_a_group_rank_0_speaks(baked):
    out, err = baked(rank=1)
    assert out == "a library prints\n"
    assert err == ""


def test_a_task_that_begins_again_has_a_rate_of_its_own(capsys, monkeypatch):
    """As in the second run of a sweep."""
    clock = iter([0.0, 10.0, 1000.0, 1010.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))

    def two_runs(*, report) -> Pie:
        for done in (0, 20, 0, 40):
            report(Progress(task="bake", done=done, total=80, unit="pies"))
        return Pie(slices=1, plate=Path("plate"))

    console.run(two_runs)
    assert "bake: 20/80 pies, 2 pies/s" in (out := capsys.readouterr().out)
    assert "bake: 40/80 pies, 4 pies/s, 0 min 10 s left" in out


def test_the_panel_shows_a_step_and_what_goes_on_between_two():
    panel = TrainPanel(Console(file=io.StringIO(), force_terminal=True))
    try:
        assert panel.rows() == {"state": "starting"}
        panel.show(STEP)
        rows = panel.rows()
        assert (rows["loss"], rows["MFU"], rows["memory"]) == ("0.5000", "41.0%", "1.00 GiB")
        panel.working("preview", 1, 2, "images")
        assert panel.rows()["now"] == "preview: 1/2 images"
        panel.render()
    finally:
        panel.close()
