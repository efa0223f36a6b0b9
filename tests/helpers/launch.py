"""The one way that tests start commands and processes.

run("sample", model, "-n", 2)              a command line in this process
run_process("sample", model, "-n", 2)      the same in a process of its own
run_beside(line, line)                     processes side by side
with started("-m", "mpdit_cli", …) as p:   a process to be killed: `kill_when(p, condition)`
fork_group(work, size=2)                   `work(rank)` in forked ranks of one group, which need not import torch again
SERVER.Process(target=…)                   a process that trains: forked too, but from one that never computed anything
serve_group(work, …, size=2)               `work(…)` in such processes, a rank of one group each
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

SECONDS = 120.0  # no test waits longer for a process

# Autograd does not survive a fork of a process that has used it, as the tests' own may have. This server never does; it
# imports what takes seconds once, also what torch imports when an optimizer or a sharded model is first made.
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


def run_beside(*lines: Sequence[object]) -> list[Outcome]:
    """`python LINE` for each of `lines`, all at once."""
    with contextlib.ExitStack() as stack:
        return [_outcome(process) for process in [stack.enter_context(started(*line)) for line in lines]]


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


def fork_group(work: Callable[[int], object], *, size: int = 2) -> None:
    """`work(rank)` in `size` forked processes of one group; each must end without an error."""
    rendezvous = _rendezvous(size)
    fork = multiprocessing.get_context("fork")
    group = [fork.Process(target=_enter, args=(rendezvous, rank, work, rank)) for rank in range(size)]
    assert _end_codes(group) == [0] * size


def serve_group(work: Callable[..., int | None], *arguments: object, size: int = 2) -> list[Outcome]:
    """How `work(*arguments)` ended in `size` processes of one group, by rank. What it returns is its exit code."""
    rendezvous = _rendezvous(size)
    with tempfile.TemporaryDirectory() as name:
        place = (rendezvous, Path(name), work, arguments)
        codes = _end_codes([SERVER.Process(target=_enter_served, args=(rank, *place)) for rank in range(size)])
        printed = [[Path(name, f"{stream}-{rank}").read_text() for stream in ("out", "err")] for rank in range(size)]
    return [Outcome(code, out, err) for code, (out, err) in zip(codes, printed, strict=True)]


def serve_command(*words: object, size: int = 2) -> list[Outcome]:
    """How `mpdit WORDS` ended in `size` processes of one group, by rank, as torchrun would start them."""
    return serve_group(_main, [str(word) for word in words], size=size)


def _main(words: list[str]) -> int:
    from mpdit_cli.app import main

    return main(words)


def _enter(rendezvous: Mapping[str, str], rank: int, work: Callable[..., Any], *arguments: object) -> Any:
    import torch

    torch.set_num_threads(1)
    os.environ.update({**rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    return work(*arguments)


def _enter_served(
    rank: int, rendezvous: Mapping[str, str], folder: Path, work: Callable[..., int | None], arguments: tuple[Any, ...]
) -> None:
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{stream}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    code = 1
    try:
        code = _enter(rendezvous, rank, work, *arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # as mpdit_cli/__main__.py ends


def _end_codes(group: list[Any]) -> list[int | None]:
    """Exit codes of processes that are started here, and killed where they do not end."""
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
