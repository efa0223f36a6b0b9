"""All printing: events as lines, progress bars and results for people, or as JSON lines for programs.

Text for people goes to stdout. With `--json` it goes to stderr, as does everything that plugins and libraries print
while a job runs, so that stdout holds JSON alone.
"""

from __future__ import annotations

import contextlib
import json as json_module
import os
import signal
import sys
import textwrap
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO, TypeVar

from mpdit_cli.panel import TrainPanel, duration_text
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.reporting import Event, Note, Progress, Saved, Skipped, Step, Warning, jsonable, silent
from mpdit_core.settings import Result
from mpdit_core.table import Table

SECONDS_BETWEEN_LINES = 5.0  # of progress, without a terminal
WIDTH_OF_A_FILE = 160  # characters of a table's line, without a terminal
MAX_UNBROKEN = 12  # characters of a column whose cells stay on one line, whatever the width
MAX_NUMBER_WIDTH = 24  # characters of a number with its unit or error bar

R = TypeVar("R", bound=Result)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a command prints at its end for people: labelled values, and the command to type next."""

    title: str
    rows: dict[str, str]
    next_command: str = ""


@dataclass
class _Settings:
    json: bool = False
    quiet: bool = False
    stdout: TextIO | None = None  # the real one, while a job runs with --json


_settings = _Settings()


def configure(*, json: bool, quiet: bool) -> None:
    """Called once by `app.main`, before the command line is parsed, so that its errors are printed accordingly."""
    _settings.json, _settings.quiet = json, quiet


def run(job: Callable[..., R], *arguments: Any, nproc: str = "1", device: str = "auto") -> R:
    """Runs `job(*arguments, report=…)` here and returns its result; or runs this command line in `nproc` processes.

    In a group of processes only rank 0 shows anything.

    Args:
        nproc: number of processes, or `auto`.
        device: the kind of device that `auto` counts.

    Raises:
        typer.Exit: with the exit code of the processes, after they were started and have ended.
    """
    if nproc != "1":
        _launch_if_several(nproc, device)
    view = _View()
    with _stdout_for_json():
        try:
            return job(*arguments, report=view.show if _rank() == 0 else silent)
        except KeyboardInterrupt:  # click would end with it
            raise Interrupted(signal.SIGINT) from None
        finally:
            view.close()


def _launch_if_several(nproc: str, device: str) -> None:
    import typer

    from mpdit_core.runtime.device import select_device
    from mpdit_core.runtime.distributed import count_processes, launch, under_torchrun

    processes = 1 if under_torchrun() else count_processes(nproc, select_device(device))
    if processes > 1:
        code, ended = launch(sys.argv[1:], processes)
        if ended is not None:
            user_error(UserError(ended, code="process-ended"))
        raise typer.Exit(code)


def show(result: Result, *parts: Table | Summary) -> None:
    """Prints a result: `parts` for people, and with `--json` the last JSON line. In a group only rank 0 prints."""
    if _rank() != 0:
        return
    if _settings.json:
        _write_json({"event": "result"} | jsonable(result.model_dump()))
    for number, part in enumerate(() if _settings.quiet else parts):
        if number:
            say("")
        _draw_table(part) if isinstance(part, Table) else _draw_summary(part)


@contextlib.contextmanager
def _stdout_for_json() -> Iterator[None]:
    """With `--json`, keeps stdout for events: what Python or C code prints in the meantime goes to stderr."""
    if not _settings.json or _settings.stdout is not None:
        yield
        return
    import ctypes

    sys.stdout.flush()
    ours = os.dup(1)
    is_real = sys.stdout is sys.__stdout__  # False where a caller in Python has replaced it
    os.dup2(2, 1)
    stdout = open(os.dup(ours), "w", encoding="utf-8") if is_real else sys.stdout  # noqa: SIM115
    _settings.stdout = stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows
            ctypes.CDLL(None).fflush(None)  # what C code has printed and the C library still buffers
        os.dup2(ours, 1)
        os.close(ours)
        _settings.stdout = None
        if is_real:
            with contextlib.suppress(OSError):  # the reader may be gone
                stdout.close()


TRACEBACK = "Traceback (most recent call last)"


def clean(text: str, *, lines: bool = False) -> str:
    """`text` made harmless: it may contain names from files that are meant to mislead a terminal or its reader.

    Control characters, escape sequences, marks that reverse the direction of writing, undecodable bytes and, unless
    `lines` is true, line ends are shown as Python escapes. Text that imitates a traceback is replaced.
    """
    return _escaped(text, but="\n" if lines else "").replace(TRACEBACK, "(text of a traceback)")


def _escaped(text: str, *, but: str) -> str:
    """`text` with Python's escapes for what is not printable, except for the characters of `but`."""
    harmless = {c for c in set(text) if c in but or c.isprintable() or unicodedata.category(c) == "Zs"}
    return "".join(c if c in harmless else c.encode("unicode_escape").decode() for c in text)


def say(text: str, *, style: str | None = None) -> None:
    """Prints text for people; in a group only rank 0 prints."""
    if not _settings.quiet and _rank() == 0:
        _print(_console_for_people(), text, style)


def _print(console: Any, text: str, style: str | None = None) -> None:
    console.print(clean(text, lines=True), style=style, markup=False, highlight=False, soft_wrap=True)


def show_picture(path: str) -> None:
    """Prints the picture as coloured half blocks, as wide as the terminal; without a terminal, says that it cannot."""
    console = _console_for_people()
    if _settings.quiet or not console.is_terminal:
        say(f"{path} is not shown: the output is not a terminal")
        return
    from PIL import Image
    from rich.text import Text

    from mpdit_core.pictures import terminal_text

    with Image.open(path) as picture:
        console.print(Text.from_ansi(terminal_text(picture, console.width)), no_wrap=True)


def user_error(error: UserError) -> None:
    """Prints a user error: text on stderr, and with `--json` the last line of stdout."""
    from rich.console import Console

    terminal = Console(stderr=True)
    shown = UserError(
        _wrapped(clean(error.what), terminal, indent=len("error: ")),
        expected=error.expected and _wrapped(clean(error.expected), terminal, indent=len("  expected: ")),
        remedy=error.remedy and clean(error.remedy),  # may be a command to copy
    )
    if _rank() != 0:
        print(f"[rank {_rank()}] {shown}", file=sys.stderr)
        return
    print(f"error: {shown}", file=sys.stderr)
    if _settings.json:
        found = {"code": error.code, "what": error.what, "expected": error.expected, "remedy": error.remedy}
        _write_json({"event": "error", **found})


def usage_error(error: Any) -> None:
    """Prints click's own text about a command line that it cannot parse; with `--json` also a line as `user_error`."""
    error.show()
    if _settings.json:
        _write_json({"event": "error", "code": "usage", "what": error.format_message()})


def stopped(interrupted: Interrupted, *, remedy: str) -> None:
    """Says that a signal ended the command, and `remedy`: what to type to resume it."""
    say(f"stopped; to resume: {remedy}")
    if _settings.json and _rank() == 0:
        _write_json({"event": "error", "code": "interrupted", "what": str(interrupted), "remedy": remedy})


def defect(problem: BaseException) -> None:
    """Prints the traceback of a defect of mpdit, and what to do with it."""
    print(_escaped("".join(traceback.format_exception(problem)), but="\n\t"), file=sys.stderr)
    print("\nThis is a defect in mpdit, not a mistake of yours. Please report it with the text above.", file=sys.stderr)
    if _settings.json:
        _write_json({"event": "error", "code": "defect", "what": f"{type(problem).__name__}: {problem}"})


def _rank() -> int:
    return int(os.environ.get("RANK", 0))  # set by torchrun; asking mpdit_core.runtime.distributed would import torch


def _console_for_people() -> Any:
    from rich.console import Console

    return Console(stderr=_settings.json)


def _write_json(value: dict[str, Any]) -> None:
    stdout = _settings.stdout or sys.stdout
    stdout.write(json_module.dumps(value, allow_nan=False) + "\n")
    stdout.flush()


def _wrapped(text: str, console: Any, *, indent: int = 0) -> str:
    """`text` broken between words at the width of the terminal; without a terminal, unchanged.

    Args:
        indent: columns that are left free, before the first line too.
    """
    if not console.is_terminal:
        return text
    lines = (
        textwrap.wrap(line, max(20, console.width - indent), break_long_words=False, break_on_hyphens=False) or [""]
        for line in text.split("\n")
    )
    return f"\n{' ' * indent}".join(line for wrapped in lines for line in wrapped)


def _draw_table(table: Table) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    console = _console_for_people()
    if table.title:
        say(_wrapped(table.title, console), style="bold")
    drawn = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        longest = max(map(len, [column, *cells]))
        drawn.add_column(
            column,
            justify="left" if i == 0 or longest > MAX_NUMBER_WIDTH or _are_words(cells) else "right",
            no_wrap=i == 0 or longest <= MAX_UNBROKEN,
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*map(clean, row))
    if not console.is_terminal and console.width < WIDTH_OF_A_FILE:  # a file has no width to fit the columns into
        console.width = WIDTH_OF_A_FILE
    console.print(drawn)
    if table.note:
        say(_wrapped(table.note, console))


def _draw_summary(summary: Summary) -> None:
    width, console = max((len(label) for label in summary.rows), default=0), _console_for_people()
    say(summary.title, style="bold")
    for label, value in summary.rows.items():
        say(f"  {label:<{width}}  {_wrapped(clean(value), console, indent=width + 4)}")
    if summary.next_command:
        say(f"next:  {summary.next_command}", style="green")


def _are_words(cells: Iterable[str]) -> bool:
    """Whether most of a column's cells start with a letter. Words are aligned to the left, numbers to the right."""
    starts = [cell[0].isalpha() or cell[0] in "`'“(" for cell in cells if cell]
    return sum(starts) * 2 > len(starts)


class _View:
    """Draws the events of one job. A progress bar on a terminal; elsewhere a line every few seconds."""

    def __init__(self) -> None:
        self.console = _console_for_people()
        self.bars: Any = None
        self.panel: Any = None
        self.tasks: dict[str, Any] = {}
        self.last_line: dict[str, float] = {}
        self.started: dict[str, tuple[float, int]] = {}  # time, and what was done by then
        self.done: dict[str, int] = {}

    def show(self, event: Event) -> None:
        if _settings.quiet and not isinstance(event, Warning):
            return
        if _settings.json:
            _write_json(event.as_json())
        match event:
            case Progress():
                self._progress(event.task, event.done, event.total, event.unit)
            case Step() if self.console.is_terminal:
                if self.panel is None:
                    self.close()  # one live display at a time
                    self.bars, self.panel = None, TrainPanel(self.console)
                self.panel.show(event)
            case Step():
                text = (
                    f"loss {event.loss:.4f}  grad {event.grad_norm:.3f}  lr {event.learning_rate:.2e}  "
                    f"{event.images_per_second:.1f} images/s"
                )
                self._progress("train", event.step, event.total_steps, "steps", text)
            case Note(text=text):
                _print(self.console, _wrapped(text, self.console))
            case Warning(text=text):
                _print(self.console, _wrapped(f"warning: {text}", self.console), "yellow")
            case Saved(what=what, path=path):
                if self.panel is not None and what == "preview":
                    self.panel.preview = str(path)
                _print(self.console, f"{what}: {path}")
            case Skipped(path=path, reason=reason):
                _print(self.console, f"skipped {path}: {reason}", "yellow")

    def close(self) -> None:
        if self.bars is not None:
            self.bars.stop()
        if self.panel is not None:
            self.panel.close()

    def _progress(self, task: str, done: int, total: int, unit: str, text: str = "") -> None:
        if self.panel is not None:
            self.panel.working(task, done, total, unit)
            return
        again = done < self.done.get(task, 0)  # in the next run of a sweep, or after a rollback
        self.done[task] = done
        if self.console.is_terminal:
            if self.bars is None:
                self.bars = _progress_bars(self.console)
                self.bars.start()
            if task not in self.tasks:
                self.tasks[task] = self.bars.add_task(task, total=total, unit=unit, text="")
            if again:
                self.bars.reset(self.tasks[task])
            self.bars.update(self.tasks[task], completed=done, total=total, text=text)
            return
        now = time.monotonic()
        if again or task not in self.started:
            self.started[task] = now, done
        first, at_first = self.started[task]
        if now - self.last_line.get(task, -SECONDS_BETWEEN_LINES) < SECONDS_BETWEEN_LINES and done < total:
            return
        self.last_line[task] = now
        rate = (done - at_first) / (now - first) if now > first else 0.0
        left = f", {duration_text((total - done) / rate)} left" if rate > 0 and done < total else ""
        speed = f", {rate:.4g} {unit}/s" if rate > 0 else ""
        _print(self.console, f"{task}: {done}/{total} {unit}{speed}{left}" + (f"  {text}" if text else ""))


def _progress_bars(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(TextColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.4g} {task.fields['unit']}/s" if speed else "")

    return Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(""), TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"), console=console,
    )  # fmt: skip
