"""Makes shards with all processes, each its share; finished ones are kept whenever the work stops."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from mpdit_core.data.manifest import FeatureShard, Shard
from mpdit_core.data.shards import ShardContent
from mpdit_core.encoding.folder import EncodingFolder, TeacherFolder
from mpdit_core.encoding.pipeline import Encoded
from mpdit_core.encoding.setup import EncodeJob
from mpdit_core.errors import Interrupted
from mpdit_core.reporting import Note, Progress, Skipped, Warning
from mpdit_core.runtime.concurrency import WriteBehind
from mpdit_core.runtime.signals import StopRequest

SECONDS_BETWEEN_CHECKS = 0.1  # of the records of other processes


def make_shards(
    job: EncodeJob,
    unfinished: Sequence[int],
    *,
    task: str,
    encode: Callable[[Sequence[int]], Iterator[Encoded]],
    write: Callable[[ShardContent], Shard | FeatureShard],
    records: EncodingFolder | TeacherFolder,
) -> None:
    """Makes this process's share of the shards `unfinished`, and returns when all processes have made theirs.

    A shard is written while the next is encoded. A signal takes effect after the current batch; every shard that is
    complete by then is written. A process of a group ends when the process that started it is gone.

    Args:
        task: name of the work, for the progress.
        encode: gives the content of shards, one after the other.
        write: writes the content of a shard and returns its record.
        records: where the shards that all processes have finished are recorded.

    Raises:
        Interrupted: finished shards are kept.
    """
    world, report, num_shards = job.world, job.report, job.plan.num_shards
    begin, end = (len(unfinished) * rank // world.size for rank in (world.rank, world.rank + 1))
    share, launcher = unfinished[begin:end], os.getppid()
    total = job.plan.count_items(share)
    shown_task = task if world.size == 1 else f"{task} (process 1 of {world.size})"

    def store(content: ShardContent) -> None:
        records.add(content.number, write(content))

    def others_work() -> bool:
        return world.size > 1 and records.count_records() < num_shards and not records.is_complete

    def require_launcher() -> None:
        if world.size > 1 and os.getppid() != launcher:
            raise SystemExit(f"process {world.rank}: its launcher has ended")

    def make_share(stop: StopRequest) -> None:
        done = 0
        with WriteBehind() as writer:
            for batch in encode(share):
                require_launcher()
                if batch.content is not None:
                    writer.submit(store, batch.content)
                done += batch.items
                for item in batch.skipped:
                    report(Skipped(path=item.key, reason=item.reason))
                report(Progress(task=shown_task, done=done, total=total, unit="images"))
                stop.check()

    try:
        with StopRequest() as stop:
            make_share(stop)
            if others_work():
                report(Note(text="waiting for the other processes"))
            while others_work():  # collective calls would time out on slow storage
                require_launcher()
                stop.check()
                time.sleep(SECONDS_BETWEEN_CHECKS)
    except (KeyboardInterrupt, Interrupted):
        text = f"stopped: {records.count_records()} of {num_shards} shards are finished and kept"
        report(Warning(code="stopped", text=text))
        raise
