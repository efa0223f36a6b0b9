"""One writer per folder: a job holds the lock of its output folder; a second job is refused, with the owner's name."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mpdit_core.errors import UserError
from mpdit_core.runtime.files import user_errors

LOCK = ".lock"
SECONDS = 10.0  # the processes of a killed launcher need some time to notice that it is gone


@contextmanager
def locked(folder: Path, *, seconds: float | None = None) -> Iterator[None]:
    """Holds the lock of `folder`, which is made where it is missing, until the body ends.

    Args:
        seconds: how long to wait for another writer; by default `SECONDS`.

    Raises:
        UserError: another process holds it (`folder-in-use`), or the place cannot be written.
    """
    path = folder / LOCK
    with user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, SECONDS if seconds is None else seconds)
    try:
        with user_errors(_owner_file(path)):
            _owner_file(path).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        # Removed before the release, so that no other process locks the old file in between.
        for file in (_owner_file(path), path):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        lock.release()


def _acquire(path: Path, seconds: float) -> FileLock:
    while True:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise UserError(
                f"another process is writing to {path.parent}{_owner_text(path)}",
                code="folder-in-use",
                expected="one command per folder at a time",
                remedy="wait for it, stop it, or choose another folder",
            ) from None
        if path.exists():
            return lock
        lock.release()  # the last holder has just removed this file: lock the one that the next writer will see


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{LOCK}.owner")


def _owner_text(path: Path) -> str:
    try:
        return f": {_owner_file(path).read_text(encoding='utf-8')}"
    except OSError:
        return ""
