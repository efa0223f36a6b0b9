"""Ending a job between two steps instead of in the middle of one.

    with StopRequest() as stop:
        for batch in batches:
            work(batch)
            stop.check()

A signal only sets a flag, which the job reads where it can stop; a second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from mpdit_core.errors import Interrupted

# Ctrl-C; a request to end; a closed terminal; what Slurm is usually told to send before pre-emption.
# Windows lacks the last two.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")

SECONDS_OF_ONE_REQUEST = 5.0  # in a group, scheduler and launcher both send a signal: in this time they are one

last_received: int | None = None
"""The stop signal that this process received last."""


def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Sets the handler of all stop signals, except ignored ones (SIGHUP under nohup). Returns the old handlers.

    Outside the main thread, such as in a notebook's worker, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    known = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    return {s: signal.signal(s, handler) for s in known if signal.getsignal(s) != signal.SIG_IGN}


def interrupt(signum: int, _frame: FrameType | None) -> None:
    """The handler while no job checks for signals: raises `Interrupted` at once."""
    global last_received
    last_received = signum
    raise Interrupted(signum)


class StopRequest:
    """While entered, remembers the first stop signal in `received`. A second signal raises `Interrupted`.

    Args:
        then: called with the number of every signal; `int` does nothing.
    """

    def __init__(self, then: Callable[[int], object] = int) -> None:
        self.received: int | None = None
        self._then = then
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = handle_stop_signals(self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raises `Interrupted` when a signal was received."""
        if self.received is not None:
            raise Interrupted(self.received)

    def _remember(self, signum: int, _frame: FrameType | None) -> None:
        global last_received
        last_received = signum
        self._then(signum)
        if self.received is None:
            self.received, self._since = signum, time.monotonic()
        elif "RANK" not in os.environ or time.monotonic() - self._since > SECONDS_OF_ONE_REQUEST:
            raise Interrupted(signum)
