"""Makes shards with all processes, each its share; finished ones are kept whenever the work stops."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mpdit_core.data.manifest import EncodingPlan
from mpdit_core.data.shards import ShardContent
from mpdit_core.encoding.folder import EncodingFolder
from mpdit_core.encoding.pipeline import Encoded
from mpdit_core.encoding.teacher.folder import TeacherFolder
from mpdit_core.errors import Interrupted
from mpdit_core.reporting import Note, Progress, Reporter, Skipped, Warning
from mpdit_core.runtime.concurrency import WriteBehind
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.signals import StopRequest

SECONDS_BETWEEN_CHECKS = 0.1  # of the records of other processes


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """The shards to make.

    Args:
        task: name of the work, for the progress.
        plan: plan of the latents, for the items that a shard covers.
        unfinished: numbers of the shards to make.
        encode: gives the content of shards, one after the other.
        store: writes and records the content of one shard.
        records: records of the shards that all processes have finished.
    """

    task: str
    plan: EncodingPlan
    unfinished: Sequence[int]
    encode: Callable[[Sequence[int]], Iterator[Encoded]]
    store: Callable[[ShardContent], None]
    records: EncodingFolder | TeacherFolder


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
        text = f"stopped: {work.records.count_records()} of {total} shards are finished and kept"
        report(Warning(code="stopped", text=text))
        raise


def _make_share(work: ShardWork, stop: StopRequest, *, world: World, report: Reporter) -> None:
    """Makes this process's share: a shard is written while the next is encoded.

    A signal takes effect after the current batch. Every shard that is complete by then is written.
    """
    count = len(work.unfinished)
    share = work.unfinished[count * world.rank // world.size : count * (world.rank + 1) // world.size]
    total, done, launcher = work.plan.count_items(share), 0, os.getppid()
    task = work.task if world.size == 1 else f"{work.task} (process 1 of {world.size})"
    with WriteBehind() as writer:
        for batch in work.encode(share):
            _require_launcher(launcher, world)
            if batch.content is not None:
                writer.submit(work.store, batch.content)
            done += batch.items
            for item in batch.skipped:
                report(Skipped(path=item.key, reason=item.reason))
            report(Progress(task=task, done=done, total=total, unit="images"))
            stop.check()


def _wait_for_others(work: ShardWork, stop: StopRequest, *, world: World, report: Reporter) -> None:
    """Waits until all shards are recorded, by polling: collective calls would time out on slow storage."""
    launcher, has_reported, records = os.getppid(), False, work.records
    while world.size > 1 and records.count_records() < work.plan.num_shards and not records.is_complete:
        if not has_reported:
            report(Note(text="waiting for the other processes"))
            has_reported = True
        _require_launcher(launcher, world)
        stop.check()
        time.sleep(SECONDS_BETWEEN_CHECKS)


def _require_launcher(launcher: int, world: World) -> None:
    """Ends this process of a group when the process that started it is gone."""
    if world.size > 1 and os.getppid() != launcher:
        raise SystemExit(f"process {world.rank}: its launcher has ended")
