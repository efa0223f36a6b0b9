"""One writer per folder: whoever writes into an output folder holds its lock, and a second one is told who does."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mpdit_core.errors import UserError
from mpdit_core.runtime.files import user_errors

LOCK = ".lock"
SECONDS = 10.0  # the processes of a killed launcher need a moment to notice that it is gone


@contextmanager
def locked(folder: Path, *, seconds: float = SECONDS) -> Iterator[None]:
    """Holds `folder`, made where it is missing, against a second writer until the body ends.

    Args:
        seconds: how long to wait for another writer to finish.

    Raises:
        UserError: another process holds it (`folder-in-use`), or the place cannot be written.
    """
    path = Path(folder) / LOCK
    with user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise UserError(
                f"another process is writing to {folder}{_holder(path)}",
                code="folder-in-use",
                expected="one command per folder at a time",
                remedy="wait for it, stop it, or choose another folder",
            ) from None
    try:
        _owner(path).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        _owner(path).unlink(missing_ok=True)
        lock.release()
        path.unlink(missing_ok=True)


def _owner(path: Path) -> Path:
    return path.with_name(f"{LOCK}.owner")


def _holder(path: Path) -> str:
    try:
        return f": {_owner(path).read_text(encoding='utf-8')}"
    except OSError:
        return ""
