"""The live panel of `mpdit train` on a terminal: loss, speed and time left."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from mpdit_core.reporting import Step

MEAN_STEPS = 100  # over which the loss is averaged


class TrainPanel:
    """Stays at the bottom of the terminal; text scrolls above it."""

    def __init__(self, console: Any):
        from rich.live import Live

        self.console = console
        self.losses: deque[tuple[int, float]] = deque()
        self.began = (0.0, 0)  # time, and the first step that was shown
        self.event: Step | None = None
        self.preview, self.activity = "", ""
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self.render)
        self.live.start()

    def show(self, event: Step) -> None:
        self.event, self.activity = event, ""
        if self.losses and event.step <= self.losses[-1][0]:  # the next run of a sweep, or a rollback
            self.losses.clear()
        if not self.losses:
            self.began = (time.monotonic(), event.step)
        self.losses.append((event.step, event.loss))
        while self.losses[0][0] <= event.step - MEAN_STEPS:
            self.losses.popleft()

    def working(self, task: str, done: int, total: int, unit: str) -> None:
        """What the run is doing between two steps."""
        self.activity = f"{task}: {done}/{total} {unit}" if done < total else ""

    def close(self) -> None:
        self.live.stop()

    def rows(self) -> dict[str, str]:
        """The panel's labels and values."""
        event = self.event
        if event is None:
            return {"state": self.activity or "starting"}
        mean = sum(loss for _, loss in self.losses) / len(self.losses)
        rows = {
            "loss": f"{event.loss:.4f}",
            f"mean of {MEAN_STEPS} steps": f"{mean:.4f}",
            "gradient norm": f"{event.grad_norm:.3f}",
            "learning rate": f"{event.learning_rate:.2e}",
            "images/s": f"{event.images_per_second:.1f}",
        }
        if "mfu" in event.extra:
            rows["MFU"] = f"{event.extra['mfu']:.1%}"
        if "memory_bytes" in event.extra:
            rows["memory"] = f"{event.extra['memory_bytes'] / 2**30:.2f} GiB"
        since, first = self.began
        seconds_per_step = (time.monotonic() - since) / max(event.step - first, 1)
        left = duration_text((event.total_steps - event.step) * seconds_per_step)
        rows["time left"] = left if event.step > first else "…"
        if self.preview:
            rows["last preview"] = self.preview
        if self.activity:
            rows["now"] = self.activity
        return rows

    def render(self) -> Any:
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, value in self.rows().items():
            grid.add_row(label, value)
        step, total = (self.event.step, self.event.total_steps) if self.event else (0, 1)
        width = min(80, self.console.width)
        title = f"training: step {step:,} of {total:,}"
        whole = Table.grid()  # the bar needs a row of its own, because it draws no line end
        whole.add_row(ProgressBar(total=total, completed=step))
        whole.add_row(grid)
        return Panel(whole, title=title, title_align="left", width=width)


def duration_text(seconds: float) -> str:
    """`3 h 05 min`, or `4 min 12 s`."""
    hours, minutes = int(seconds) // 3600, int(seconds) % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {int(seconds) % 60:02d} s"
