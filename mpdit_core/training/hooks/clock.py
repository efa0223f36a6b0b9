"""The time that training itself takes: previews and evaluations between two logged steps do not count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class WorkClock:
    """Measures steps per second between laps. `now` gives seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins a new window at `step`."""
        self._begun, self._step, self._idle = self._now(), step, 0.0

    def lap(self, step: int) -> float:
        """Steps per second since the last lap or restart, pauses left out; a new window begins."""
        seconds = self._now() - self._begun - self._idle
        steps = step - self._step
        self.restart(step)
        return steps / max(seconds, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training."""
        begun = self._now()
        try:
            yield
        finally:
            self._idle += self._now() - begun
