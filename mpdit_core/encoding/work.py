"""Shards that all processes make together: each its share, with what is finished kept whenever they stop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mpdit_core.data.manifest import EncodingPlan
from mpdit_core.data.shards import ShardContent
from mpdit_core.encoding.pipeline import Encoded
from mpdit_core.errors import Interrupted
from mpdit_core.reporting import Note, Progress, Reporter, Skipped, Warning
from mpdit_core.runtime.concurrency import WriteBehind
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.signals import StopRequest

SECONDS_BETWEEN_LOOKS = 0.1  # at the records of other processes


class Recorded(Protocol):
    """Where finished shards are recorded, by all processes."""

    def count_records(self) -> int: ...

    @property
    def is_complete(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """The shards to make.

    Args:
        task: what is done, for the progress.
        plan: of the latents: it says which items a shard covers.
        unfinished: numbers of the shards to make.
        encode: their content, one after the other.
        store: writes the content of one, and records it.
        recorded: by all processes together.
    """

    task: str
    plan: EncodingPlan
    unfinished: Sequence[int]
    encode: Callable[[Sequence[int]], Iterator[Encoded]]
    store: Callable[[ShardContent], None]
    recorded: Recorded


def make_shards(work: ShardWork, *, world: World, report: Reporter) -> None:
    """Makes this process's share, and returns when all have made theirs.

    Raises:
        Interrupted: finished shards are kept.
    """
    total = work.plan.num_shards
    try:
        with StopRequest() as stop:
            _make_share(work, stop, world=world, report=report)
            _wait_for_others(work, stop, world=world, report=report)
    except (KeyboardInterrupt, Interrupted):
        text = f"stopped: {work.recorded.count_records()} of {total} shards are finished and kept"
        report(Warning(code="stopped", text=text))
        raise


def _make_share(work: ShardWork, stop: StopRequest, *, world: World, report: Reporter) -> None:
    """One shard is written while the next is encoded; all that were complete get written.

    A signal takes effect after the batch under way.
    """
    count = len(work.unfinished)
    share = work.unfinished[count * world.rank // world.size : count * (world.rank + 1) // world.size]
    total, done, launcher = work.plan.count_items(share), 0, os.getppid()
    task = work.task if world.size == 1 else f"{work.task} (process 1 of {world.size})"
    with WriteBehind() as writer:
        for batch in work.encode(share):
            if world.size > 1 and os.getppid() != launcher:
                raise SystemExit(f"process {world.rank}: its launcher has ended")
            if batch.content is not None:
                writer.submit(work.store, batch.content)
            done += batch.items
            for item in batch.skipped:
                report(Skipped(path=item.key, reason=item.reason))
            report(Progress(task=task, done=done, total=total, unit="images"))
            stop.check()


def _wait_for_others(work: ShardWork, stop: StopRequest, *, world: World, report: Reporter) -> None:
    """Until all shards are recorded. No collective call: these time out, and slow storage takes its time."""
    launcher, told, recorded = os.getppid(), False, work.recorded
    while world.size > 1 and recorded.count_records() < work.plan.num_shards and not recorded.is_complete:
        if not told:
            report(Note(text="waiting for the other processes"))
            told = True
        if os.getppid() != launcher:
            raise SystemExit("the launcher has ended")
        stop.check()
        time.sleep(SECONDS_BETWEEN_LOOKS)
