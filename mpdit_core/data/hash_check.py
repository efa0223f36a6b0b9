"""Compares shards with their recorded hashes in a background thread, once per file, while they are read.

Reading does not wait for the check, so a fault is raised some time after the shard was first read. Of several processes
on a machine only the first one checks. `MPDIT_VERIFY=off` in the environment turns the check off.
"""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path

from mpdit_core.data.tensor_file import damaged
from mpdit_core.errors import UserError
from mpdit_core.runtime.files import sha256


class HashCheck:
    """`add` takes a file; `raise_fault` raises the first fault that was found."""

    def __init__(self) -> None:
        is_off = os.environ.get("MPDIT_VERIFY", "").lower() in ("off", "0")
        self.is_on = not is_off and os.environ.get("LOCAL_RANK", "0") == "0"
        self._waiting: queue.Queue[tuple[Path, str]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._fault: UserError | None = None

    def add(self, path: Path, recorded: str) -> None:
        if not self.is_on:
            return
        self._waiting.put((path, recorded))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hash-check", daemon=True)
            self._thread.start()

    def raise_fault(self) -> None:
        """Raises `UserError` (`damaged-file`) where a file checked so far is damaged."""
        if self._fault is not None:
            raise self._fault

    def wait(self) -> None:
        """Waits until all files are checked, then raises as `raise_fault`."""
        self._waiting.join()
        self.raise_fault()

    def _work(self) -> None:
        while True:
            path, recorded = self._waiting.get()
            try:
                found = sha256(path)
            except OSError as error:
                found = str(error)
            if found != recorded:
                expected = f"{recorded[:16]}…, as its manifest says (MPDIT_VERIFY=off reads it without this check)"
                self._fault = self._fault or damaged(path, f"its SHA-256 is {found[:16]}…", expected)
            self._waiting.task_done()
