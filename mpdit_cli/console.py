"""All printing: events as lines, progress bars and tables for people, or as JSON lines for programs.

People's text goes to stdout, and to stderr with `--json`, so that stdout then holds JSON alone. While a job runs so,
whatever else prints, a plugin or a library, is sent to stderr too.
"""

from __future__ import annotations

import contextlib
import json as json_module
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from mpdit_core.reporting import Event, Note, Progress, Result, Saved, Skipped, Summary, Table, TrainStep, Warn

SECONDS_BETWEEN_LINES = 5.0  # of progress where there is no terminal


@dataclass
class _Settings:
    json: bool = False
    quiet: bool = False
    stdout: TextIO | None = None  # the real one, while a job runs with --json


_settings = _Settings()


def configure(*, json: bool, quiet: bool) -> None:
    """Set once by `app.main`, before any command runs, so that errors of parsing already respect it."""
    _settings.json, _settings.quiet = json, quiet


def run_job(events: Iterable[Event]) -> dict[str, Any]:
    """Draws a job's events to its end and returns the data of its `Result`.

    In a process of a group only rank 0 shows anything.
    """
    view = _View(silent=_rank() != 0)
    result: dict[str, Any] = {}
    with _stdout_for_json():
        try:
            for event in events:
                view.show(event)
                if isinstance(event, Result):
                    result = event.data
        finally:
            view.close()
    return result


@contextlib.contextmanager
def _stdout_for_json() -> Iterator[None]:
    """With `--json`, keeps stdout for events; what anything prints in the meantime goes to stderr."""
    if not _settings.json or _settings.stdout is not None:
        yield
        return
    _settings.stdout = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _settings.stdout = None


def launch_or_run(nproc: str, device: str, events: Any) -> dict[str, Any]:
    """Runs the job here, or this same command line in `--nproc` processes.

    Args:
        events: a function without arguments that makes the job's events; called in each process.

    Raises:
        typer.Exit: with the exit code of the processes, when they were started and failed.
    """
    import typer

    from mpdit_core.runtime.device import select_device
    from mpdit_core.runtime.distributed import count_processes, launch, under_torchrun

    processes = 1 if under_torchrun() else count_processes(nproc, select_device(device))
    if processes > 1:
        code, ended = launch(sys.argv[1:], processes)
        if ended is not None:
            error(ended)
        raise typer.Exit(code)
    return run_job(events())


def say(text: str) -> None:
    """One line of text for people; of a group of processes, rank 0 says it."""
    if not _settings.quiet and _rank() == 0:
        _people().print(text, markup=False, highlight=False, soft_wrap=True)


def show_picture(path: str) -> None:
    """The picture as coloured half blocks, as wide as the terminal; a line that says why not where there is none."""
    console = _people()
    if _settings.quiet or not console.is_terminal:
        say(f"{path} is not shown: this is no terminal")
        return
    from PIL import Image
    from rich.text import Text

    from mpdit_core.pictures import terminal_text

    with Image.open(path) as picture:
        console.print(Text.from_ansi(terminal_text(picture, console.width)), no_wrap=True)


def error(text: str, fields: dict[str, Any] | None = None) -> None:
    """A user error: text on stderr, and as the last JSON line with `--json`."""
    if _rank() != 0:
        print(f"[rank {_rank()}] {text}", file=sys.stderr)
        return
    print(f"error: {text}", file=sys.stderr)
    if _settings.json:
        _write_json({"event": "error", **(fields or {"what": text})})


def defect(problem: BaseException) -> None:
    """An error that is ours: the traceback, and what to do with it."""
    traceback.print_exception(problem)
    print("\nThis is a defect of mpdit, not of your input. Please report it with the text above.", file=sys.stderr)
    if _settings.json:
        _write_json({"event": "error", "defect": True, "what": f"{type(problem).__name__}: {problem}"})


def _rank() -> int:
    return int(os.environ.get("RANK", 0))  # set by torchrun; asking mpdit_core.runtime.distributed would import torch


def _people() -> Any:
    from rich.console import Console

    return Console(stderr=_settings.json)


def _write_json(value: dict[str, Any]) -> None:
    stdout = _settings.stdout or sys.stdout
    stdout.write(json_module.dumps(value, allow_nan=False) + "\n")
    stdout.flush()


class _View:
    """Draws one job. A progress bar on a terminal; elsewhere a line every few seconds."""

    def __init__(self, *, silent: bool):
        self.silent = silent
        self.console = _people()
        self.bars: Any = None
        self.panel: Any = None
        self.tasks: dict[str, Any] = {}
        self.last_line = 0.0
        self.started: dict[str, tuple[float, int]] = {}

    def show(self, event: Event) -> None:
        if self.silent:
            return
        if _settings.json:
            _write_json(event.as_json())
        if _settings.quiet and not isinstance(event, Warn):
            return
        match event:
            case Progress():
                self._progress(event.task, event.done, event.total, event.unit)
            case TrainStep() if self.console.is_terminal:
                self._train_panel(event)
            case TrainStep():
                text = (
                    f"loss {event.loss:.4f}  grad {event.grad_norm:.3f}  lr {event.learning_rate:.2e}  "
                    f"{event.images_per_second:.1f} images/s"
                )
                self._progress("train", event.step, event.total_steps, "steps", text)
            case Note(text=text):
                self._print(text)
            case Warn(text=text):
                self._print(f"warning: {text}", style="yellow")
            case Saved(what=what, path=path):
                if self.panel is not None and what == "preview":
                    self.panel.preview = str(path)
                self._print(f"{what}: {path}")
            case Skipped(path=path, reason=reason):
                self._print(f"skipped {path}: {reason}", style="yellow")
            case Table():
                self._table(event)
            case Summary():
                self._summary(event)
            case _:
                pass

    def close(self) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None
        if self.panel is not None:
            self.panel.close()
            self.panel = None

    def _train_panel(self, event: TrainStep) -> None:
        if self.panel is None:
            from mpdit_cli.train_panel import TrainPanel

            self.close()  # one live display at a time
            self.tasks.clear()
            self.panel = TrainPanel(self.console)
        self.panel.show(event)

    def _print(self, text: str, style: str | None = None) -> None:
        console = self.bars.console if self.bars is not None else self.console
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _progress(self, task: str, done: int, total: int, unit: str, text: str = "") -> None:
        if self.panel is not None:
            self.panel.working(task, done, total, unit)
            return
        if self.console.is_terminal:
            if self.bars is None:
                self.bars = _progress_bars(self.console)
                self.bars.start()
            if task not in self.tasks:
                self.tasks[task] = self.bars.add_task(task, total=total, unit=unit, text="")
            self.bars.update(self.tasks[task], completed=done, total=total, text=text)
            return
        now = time.monotonic()
        first, at_first = self.started.setdefault(task, (now, done))
        if now - self.last_line < SECONDS_BETWEEN_LINES and done < total:
            return
        self.last_line = now
        rate = (done - at_first) / (now - first) if now > first else 0.0
        left = f", {_duration((total - done) / rate)} left" if rate > 0 and done < total else ""
        speed = f", {rate:.4g} {unit}/s" if rate > 0 else ""
        self._print(f"{task}: {done}/{total} {unit}{speed}{left}" + (f"  {text}" if text else ""))

    def _table(self, event: Table) -> None:
        from rich.table import Table as RichTable

        table = RichTable(title=event.title, title_justify="left")
        for i, column in enumerate(event.columns):
            words = i == 0 or _are_words(row[i] for row in event.rows)
            table.add_column(column, justify="left" if words else "right", no_wrap=i == 0)
        for row in event.rows:
            table.add_row(*row)
        console = self.bars.console if self.bars is not None else self.console
        if not console.is_terminal and console.width < 160:  # a file has no width: do not squeeze the columns
            console.width = 160
        console.print(table)
        if event.note:
            self._print(event.note)

    def _summary(self, event: Summary) -> None:
        self.close()
        width = max((len(label) for label in event.rows), default=0)
        self._print(event.title, style="bold")
        for label, value in event.rows.items():
            self._print(f"  {label:<{width}}  {value}")
        if event.next_command:
            self._print(f"next:  {event.next_command}", style="green")


def _are_words(cells: Iterable[str]) -> bool:
    """Whether most of a column's cells start with a letter: words stand on the left, numbers on the right."""
    starts = [cell[0].isalpha() or cell[0] in "`'“(" for cell in cells if cell]
    return sum(starts) * 2 > len(starts)


def _progress_bars(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(TextColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.4g} {task.fields['unit']}/s" if speed else "")

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(""), TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"), console=console,
    )  # fmt: skip


def _duration(seconds: float) -> str:
    seconds = int(seconds)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds % 60:02d} s"
