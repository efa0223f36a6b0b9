"""Two threads that jobs use, one producing ahead, one writing behind; and how many cores there are for more."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

T = TypeVar("T")

SECONDS_TO_NOTICE = 0.1  # that the other side has gone


def usable_cores() -> int:
    """Number of cores that this process may run on, its share of them where several processes run on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def produced_ahead(items: Iterable[T], *, ahead: int, name: str = "produce") -> Generator[T, None, None]:
    """`items` in order, produced in a thread, up to `ahead` of them before they are asked for.

    What producing them raises is raised here, in its turn. Ending the iteration early ends the thread.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
    stopping = threading.Event()

    def put(kind: str, value: Any = None) -> None:
        while not stopping.is_set():
            try:
                ready.put((kind, value), timeout=SECONDS_TO_NOTICE)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put("item", item)
                if stopping.is_set():
                    return
            put("end")
        except BaseException as error:  # handed to the consumer, which raises it
            put("error", error)

    thread = threading.Thread(target=produce, name=name, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopping.set()
        thread.join()


class WriteBehind:
    """Runs one write at a time in a thread: `submit` first waits for the write before it, and raises what that raised.

    Leaving the context waits for the last write.
    """

    def __init__(self, name: str = "write"):
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._last: Future[Any] | None = None

    def submit(self, write: Callable[..., Any], *arguments: Any) -> None:
        self.wait()
        self._last = self._pool.submit(write, *arguments)

    def wait(self) -> Any:
        """What the write under way returned, once it is done; None if there was none. Raises what it raised."""
        last, self._last = self._last, None
        return last.result() if last is not None else None

    @property
    def is_done(self) -> bool:
        """Whether a write has ended that nobody has waited for yet."""
        return self._last is not None and self._last.done()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True)
