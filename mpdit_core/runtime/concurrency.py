"""The two threads of jobs, one that produces ahead and one that writes behind; and the number of usable cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

T = TypeVar("T")


def usable_cores() -> int:
    """Number of cores for this process; if several processes of a group run on this machine, its share of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def produced_ahead(items: Iterable[T], *, ahead: int, name: str) -> Generator[T, None, None]:
    """`items` in order, produced in a thread, up to `ahead` of them before they are asked for.

    An error in producing an item is raised here in place of that item. Ending the iteration early ends the thread.
    """
    iterator, end = iter(items), object()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
    try:
        ready = deque(pool.submit(next, iterator, end) for _ in range(ahead))
        while (item := ready.popleft().result()) is not end:
            ready.append(pool.submit(next, iterator, end))
            yield item  # pyright: ignore[reportReturnType]  # it is not `end`
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
