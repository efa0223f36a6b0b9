"""The one way that tests start commands and processes.

run("sample", model, "-n", 2)              a command line in this process
run_process("sample", model, "-n", 2)      the same in a process of its own
with started("-m", "mpdit_cli", …) as p:   a process to be killed: `kill_when(p, condition)`
run_group("-m", "mpdit_cli", …, size=2)    a process per rank of one group, as torchrun starts them
fork_group(work, size=2)                   `work(rank)` in forked ranks, which need not import torch again
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

SECONDS = 120.0  # no test waits longer for a process


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """What was printed with `--json`."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        """The last of the events: a result, or an error with its code."""
        return self.events[-1]


def run(*words: object) -> Outcome:
    """`mpdit WORDS`, in this process."""
    from mpdit_cli.app import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Outcome(code, out.getvalue(), err.getvalue())


def succeed(*words: object) -> Outcome:
    """`run`, for a command that must end with 0."""
    outcome = run(*words)
    assert outcome.code == 0, outcome.err
    return outcome


def run_process(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Outcome:
    """`mpdit WORDS`, in a process of its own."""
    return run_python("-m", "mpdit_cli", *words, env=env, cwd=cwd)


def run_python(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Outcome:
    """`python WORDS`, such as `"-c", code`, to its end."""
    with started(*words, env=env, cwd=cwd) as process:
        return _outcome(process)


@contextlib.contextmanager
def started(
    *words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`python WORDS` as a process that runs beside the test; killed at the end of the body if it still does."""
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(env or {}),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _outcome(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=SECONDS)
    return Outcome(process.returncode, out, err)


def kill_when(
    process: subprocess.Popen[str], condition: Callable[[], object], *, signum: int = signal.SIGKILL
) -> Outcome:
    """Sends `signum` as soon as `condition()` holds, and waits for the end. Fails where the process ends first."""
    wait_until(lambda: condition() or process.poll() is not None)
    assert process.poll() is None, f"it came to its end before it was to be killed: {process.communicate()}"
    process.send_signal(signum)
    return _outcome(process)


def wait_until(condition: Callable[[], object], *, seconds: float = SECONDS) -> None:
    """Waits for `condition()` to hold, and fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def run_group(*words: object, size: int = 2, env: Mapping[str, str] | None = None) -> list[Outcome]:
    """`python WORDS` in `size` processes of one group, by rank."""
    with contextlib.ExitStack() as stack:
        rendezvous = _rendezvous(size) | dict(env or {})
        group = [stack.enter_context(started(*words, env=rendezvous | _place(rank))) for rank in range(size)]
        return [_outcome(process) for process in group]


def fork_group(work: Callable[[int], object], *, size: int = 2) -> None:
    """`work(rank)` in `size` forked processes of one group; each must end without an error."""
    import torch

    rendezvous = _rendezvous(size)

    def enter(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(rendezvous | _place(rank))
        work(rank)

    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=enter, args=(rank,)) for rank in range(size)]
    for child in children:
        child.start()
    for child in children:
        child.join(SECONDS)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    assert codes == [0] * size


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rendezvous(size: int) -> dict[str, str]:
    return {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def _place(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}
