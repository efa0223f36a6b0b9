"""The two threads of jobs, one that produces ahead and one that writes behind; and the number of usable cores."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

T = TypeVar("T")

SECONDS_TO_NOTICE = 0.1  # that the consumer has gone


def usable_cores() -> int:
    """Number of cores for this process; if several processes of a group run on this machine, its share of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def produced_ahead(items: Iterable[T], *, ahead: int, name: str = "produce") -> Generator[T, None, None]:
    """`items` in order, produced in a thread, up to `ahead` of them before they are asked for.

    An error in producing an item is raised here in place of that item. Ending the iteration early ends the thread.
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
    """Runs one write at a time in a thread. `submit` first waits for the previous write and raises its error.

    Leaving the context waits for the last write.
    """

    def __init__(self, name: str = "write"):
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._last: Future[Any] | None = None

    def submit(self, write: Callable[..., Any], *arguments: Any) -> None:
        self.wait()
        self._last = self._pool.submit(write, *arguments)

    def wait(self) -> Any:
        """Waits for the write in progress. Returns its result, or None if there was none; raises its error."""
        last, self._last = self._last, None
        return last.result() if last is not None else None

    @property
    def is_done(self) -> bool:
        """Whether a write has ended and `wait` has not been called for it."""
        return self._last is not None and self._last.done()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True)
