"""How tests start commands and processes.

run("sample", model, "-n", 2)              a command line in this process
run_python("-c", code)                     Python in a process of its own
with started("-c", code) as p:             the same, to be killed: `kill_when(p, condition)`
with forked("sample", model, …) as p:      a command line in a forked process, which need not import torch again
run_forked(work, …)                        `work(…)` in a process forked from the test
fork_group(work, size=2)                   `work(rank)` in forked ranks of one group, which need not import torch again
SERVER.Process(target=…)                   a process that trains, forked from a server that never computed anything
serve_group(work, …, size=2)               `work(…)` in such processes, each a rank of one group
serve_command("train", …, size=2)          a command line in such a group, as torchrun would start it
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
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

SECONDS = 120.0  # no test waits longer for a process
FORK = multiprocessing.get_context("fork")

# Autograd fails in a fork of a process that has used it, as the process of the tests may have. This server never uses
# it. It imports slow modules once, also those that torch imports when an optimizer or a sharded model is made.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["pytest", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint.hf_storage",
     "mpdit_cli.app", "mpdit_core.training.job", "mpdit_core.evaluation.job"]
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int | None
    out: str
    err: str

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """What was printed with `--json`."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        """The last event: a result, or an error with its code."""
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


def run_python(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Outcome:
    """`python WORDS`, such as `"-c", code`, to its end."""
    with started(*words, env=env, cwd=cwd) as process:
        return _outcome(process)


@contextlib.contextmanager
def started(
    *words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`python WORDS` as a process in the background, which is killed at the end of the body."""
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(env or {}),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Forked:
    """A process of `forked`, with the methods of `subprocess.Popen` that tests use."""

    process: Any
    folder: Path  # of what it prints

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def communicate(self, timeout: float = SECONDS) -> tuple[str, str]:
        self.process.join(timeout)
        return _printed(self.folder, 0)


@contextlib.contextmanager
def forked(*words: object) -> Iterator[Forked]:
    """`mpdit WORDS` as a process in the background, which is killed at the end of the body."""
    with _forked(_main, [str(word) for word in words]) as process:
        yield process


def run_forked(work: Callable[..., int | None], *arguments: object) -> Outcome:
    """How `work(*arguments)` ended in a process forked from this one; its return value is the exit code."""
    with _forked(work, *arguments) as process:
        return _outcome(process)


@contextlib.contextmanager
def _forked(work: Callable[..., int | None], *arguments: object) -> Iterator[Forked]:
    with tempfile.TemporaryDirectory() as name:
        process = FORK.Process(target=_enter_printing, args=(0, Path(name), work, arguments))
        process.start()
        try:
            yield Forked(process, Path(name))
        finally:
            process.kill()
            process.join()


def _outcome(process: subprocess.Popen[str] | Forked) -> Outcome:
    out, err = process.communicate(timeout=SECONDS)
    return Outcome(process.returncode, out, err)


def kill_when(
    process: subprocess.Popen[str] | Forked, condition: Callable[[], object], *, signum: int = signal.SIGKILL
) -> Outcome:
    """Sends `signum` as soon as `condition()` holds, and waits for the end. Fails where the process ends first."""
    wait_until(lambda: condition() or process.poll() is not None)
    assert process.poll() is None, f"it ended before it was to be killed: {process.communicate()}"
    process.send_signal(signum)
    return _outcome(process)


def wait_until(condition: Callable[[], object], *, seconds: float = SECONDS) -> None:
    """Waits for `condition()` to hold, and fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def fork_group(work: Callable[[int], object], *, size: int = 2) -> None:
    """`work(rank)` in `size` forked processes of one group; each must end without an error."""
    rendezvous = _rendezvous(size)
    group = [FORK.Process(target=_enter, args=(rendezvous, rank, work, rank)) for rank in range(size)]
    assert _end_codes(group) == [0] * size


def serve_group(work: Callable[..., int | None], *arguments: object, size: int = 2) -> list[Outcome]:
    """How `work(*arguments)` ended in `size` processes of one group, by rank; its return value is the exit code."""
    rendezvous = _rendezvous(size)
    with tempfile.TemporaryDirectory() as name:
        ranked = [(rank, Path(name), _enter, (rendezvous, rank, work, *arguments)) for rank in range(size)]
        codes = _end_codes([SERVER.Process(target=_enter_printing, args=place) for place in ranked])
        return [Outcome(code, *_printed(Path(name), rank)) for rank, code in enumerate(codes)]


def serve_command(*words: object, size: int = 2) -> list[Outcome]:
    """How `mpdit WORDS` ended in `size` processes of one group, by rank, as torchrun would start them."""
    return serve_group(_main, [str(word) for word in words], size=size)


def _main(words: list[str]) -> int:
    from mpdit_cli.app import main

    sys.argv = ["mpdit", *words]  # as in a process that torchrun starts
    return main(words)


def _enter(rendezvous: Mapping[str, str], rank: int, work: Callable[..., Any], *arguments: object) -> Any:
    import torch

    torch.set_num_threads(1)
    os.environ.update({**rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    return work(*arguments)


def _enter_printing(rank: int, folder: Path, work: Callable[..., int | None], arguments: tuple[Any, ...]) -> None:
    """Ends this process with the code that `work(*arguments)` returns; what it prints goes to files in `folder`."""
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{stream}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - in place of pytest's
    code = 1
    try:
        code = work(*arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # as mpdit_cli/__main__.py ends


def _printed(folder: Path, rank: int) -> tuple[str, str]:
    """What a process printed to stdout and stderr."""
    out, err = ((folder / f"{stream}-{rank}").read_text() for stream in ("out", "err"))
    return out, err


def _end_codes(group: list[Any]) -> list[int]:
    """Exit codes of processes that are started here, and killed if they do not end in time."""
    for process in group:
        process.start()
    for process in group:
        process.join(SECONDS)
        process.kill()
    return [process.exitcode for process in group]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rendezvous(size: int) -> dict[str, str]:
    return {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
