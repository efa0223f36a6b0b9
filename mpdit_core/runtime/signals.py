"""Ending a job between two steps instead of in the middle of one.

    with StopRequest() as stop:
        for batch in batches:
            work(batch)
            stop.check()

A signal only sets a flag, which the job looks at where it can stop; a second signal ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

from mpdit_core.errors import Interrupted

# Ctrl-C; a request to end; the terminal was closed; Slurm's notice before pre-emption, as it is commonly set.
# Windows lacks the last two.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class StopRequest:
    """While entered, remembers the first stop signal in `received`. A second signal raises `Interrupted`.

    A signal that the process ignores (SIGHUP under nohup) stays ignored. Outside the main thread, such as in a
    notebook's worker, this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            signals = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
            heeded = [s for s in signals if signal.getsignal(s) != signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._remember) for s in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self, *, remedy: str = "") -> None:
        """Raises `Interrupted` when a signal was received. `remedy`: what to type to resume."""
        if self.received is not None:
            raise Interrupted(self.received, remedy=remedy)

    def _remember(self, signum: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted(signum)
        self.received = signum
