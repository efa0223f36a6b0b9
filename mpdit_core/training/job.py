"""`mpdit train`: from a configuration and a folder of latents to a run folder with checkpoints, metrics and previews.

The loop below only says what happens when; how is in `mpdit_core/training/`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from mpdit_core.errors import Interrupted, UserError
from mpdit_core.model.compute import training_macs
from mpdit_core.reporting import Event, Note, Result, Saved, Summary, TrainStep, Warn
from mpdit_core.runtime import files
from mpdit_core.runtime.device import matmul_rate, peak_memory, select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.runtime.signals import StopRequest
from mpdit_core.settings import to_toml
from mpdit_core.training.batches import BatchSource
from mpdit_core.training.hooks.clock import WorkClock
from mpdit_core.training.hooks.divergence import Sentinel, bad_step_error
from mpdit_core.training.hooks.evaluations import already_logged, check, evaluate_checkpoint
from mpdit_core.training.hooks.previews import make_previews
from mpdit_core.training.hooks.trackers import Trackers, check_installed
from mpdit_core.training.setup import Plan, TrainOptions, create_run, prepare
from mpdit_core.training.state.checkpoints import Snapshot, Writer, read, step_folder, truncate_metrics
from mpdit_core.training.state.parallel import autocast_dtype
from mpdit_core.training.state.trainer import Trainer

LATE = 2  # steps after which a GPU's loss is read, so that the host never waits for it
ROLLBACKS_IN_A_ROW = 5


def train(options: TrainOptions) -> Iterator[Event]:
    """Trains, or goes on training. Yields events; the last is a `Result` with run, step and loss.

    Raises:
        UserError: anything `prepare` refuses; a bad loss (after saving what the batch was); a full disk.
        Interrupted: after a signal, with a checkpoint written.
    """
    device = select_device(options.device)
    with process_group(device) as world:
        plan = prepare(options, world_size=world.size)
        yield from plan.events
        check_installed(plan.config.train.trackers)
        check(plan.config.preview, device)
        if options.dry_run:
            yield from _describe(plan, device, world)
            return
        world.barrier()  # all have chosen the run's folder before rank 0 makes it
        if world.is_main:
            create_run(plan)
        world.barrier()
        yield from _Training(plan, options, device=device, world=world).run()


@dataclass(frozen=True)
class _Pending:
    """A step whose numbers are still on the device."""

    step: int
    images_seen: int
    learning_rate: float
    data_step: int
    numbers: torch.Tensor  # [3]: loss, gradient norm, stop requests; on the CPU once `ready`
    ready: torch.cuda.Event | None


class _Training:
    """One session of a run: from its start or last checkpoint to its end, a signal or a bad step."""

    def __init__(self, plan: Plan, options: TrainOptions, *, device: torch.device, world: World):
        self.plan, self.options, self.device, self.world = plan, options, device, world
        self.config, self.run_folder = plan.config, plan.run
        self.trainer = Trainer(plan.config, total_steps=plan.total_steps, device=device, world=world)
        self.source = BatchSource(
            plan.latents,
            objective=plan.config.objective,
            batch_size=plan.config.train.batch_size,
            null_label=plan.config.model.null_label,
            seed=plan.config.train.seed,
            flip=plan.config.train.flip,
            rank=world.rank,
            world_size=world.size,
        )
        self.writer = Writer(plan.run, config=plan.config, latents=plan.latents.spec, world=world)
        self.sentinel = Sentinel(plan.config.train.spike_factor)
        self.late = LATE if device.type == "cuda" else 0
        self.pending: deque[_Pending] = deque()
        self.last: TrainStep | None = None
        self.rollbacks = 0
        self.start: Snapshot | None = None  # where a rollback goes to before there is a checkpoint
        self.clock = WorkClock()
        peak = matmul_rate(device, self.trainer.model.autocast_dtype or torch.float32, seconds=0.05) * world.size
        self.image_cost = 2 * training_macs(plan.config.model) / peak  # seconds, were all of it matrix products

    def run(self) -> Iterator[Event]:
        yield from self._begin()
        yield Note(
            text=f"{self.run_folder}: step {self.trainer.position.step} of {self.plan.total_steps}, "
            f"{self.config.train.batch_size} images a step on {self.world.size} × {self.device.type}"
        )
        trackers = self.config.train.trackers if self.world.is_main else ()
        self.trackers = Trackers(trackers, self.run_folder, self.config, step=self.trainer.position.step)
        try:
            with StopRequest() as stop:
                while self.trainer.position.step < self.plan.total_steps:
                    yield from self._until_end_or_rollback(stop)
                yield from self._save(final=True)
                yield from self._evaluate(self.trainer.position.step)
        finally:
            self.trackers.close()
        yield from self._finish()

    def _begin(self) -> Iterator[Event]:
        """Goes to the last checkpoint, or to the first step."""
        if self.plan.resume_from is not None:
            self._rewind(read(self.plan.resume_from))
            return
        if self.options.init_from:
            from mpdit_core.training.warm_start import initialise_from

            yield from initialise_from(self.trainer, self.options.init_from, self.plan.latents.spec)
        if self.config.train.on_nonfinite == "rollback":
            self.start = self.trainer.snapshot()
        if self.world.is_main:
            truncate_metrics(self.run_folder / "metrics.jsonl", 0)

    def _rewind(self, snapshot: Snapshot) -> None:
        self.trainer.restore(snapshot)
        self.sentinel.mean = snapshot.position.loss_mean
        self.pending.clear()
        if self.world.is_main:
            truncate_metrics(self.run_folder / "metrics.jsonl", snapshot.position.step)
        self.clock.restart(snapshot.position.step)

    def _until_end_or_rollback(self, stop: StopRequest) -> Iterator[Event]:
        trainer, train = self.trainer, self.config.train
        first = trainer.data_step
        last = first + self.plan.total_steps - trainer.position.step
        for data_step, batch in self.source.stream(first, last, device=self.device):
            rate = trainer.learning_rate
            numbers = trainer.step(batch)
            self._enqueue(numbers, rate, data_step, stopping=stop.received is not None)
            step = trainer.position.step
            saving = step % train.checkpoint_every == 0 and step < self.plan.total_steps
            previewing = self.config.preview.every > 0 and step % self.config.preview.every == 0
            evaluating = self._evaluates(step) and step < self.plan.total_steps
            drain = saving or previewing or evaluating or step == self.plan.total_steps
            while len(self.pending) > (0 if drain else self.late):
                bad, stopping = yield from self._read_one()
                if bad:
                    yield from self._bad_step(*bad)
                    return  # rolled back: the caller begins again from there
                if stopping:
                    yield from self._drain_and_stop(stop)
            if self.writer.done:
                yield from self._finish_write()
            if previewing:
                with self.clock.paused():
                    yield from make_previews(
                        self.trainer, run=self.run_folder, spec=self.plan.latents.spec, preview=self.config.preview
                    )
            if saving or evaluating:
                yield from self._save(final=evaluating)
            if evaluating:
                yield from self._evaluate(step)

    def _evaluates(self, step: int) -> bool:
        return self.config.preview.evaluate_every > 0 and step % self.config.preview.evaluate_every == 0

    def _evaluate(self, step: int) -> Iterator[Event]:
        """Measures the checkpoint just written, on all processes, where this step is one to measure."""
        if not self._evaluates(step):
            return
        with self.clock.paused():
            values = yield from evaluate_checkpoint(
                step_folder(self.run_folder, step),
                run=self.run_folder,
                preview=self.config.preview,
                device=self.device.type,
            )
        if self.world.is_main and values:
            path = self.run_folder / "metrics.jsonl"
            if not already_logged(path, step):
                self._write_line({"step": step} | values)
            yield from self.trackers.log_values(values, step=step)

    def _enqueue(self, numbers: torch.Tensor, rate: float, data_step: int, *, stopping: bool) -> None:
        numbers = torch.cat([numbers, torch.full((1,), float(stopping), device=self.device)])
        if self.world.size > 1:
            numbers[1] /= self.world.size  # the norm is the same everywhere
            numbers[0] /= self.world.size
            self.world.all_reduce(numbers)
        ready = None
        if self.device.type == "cuda":
            numbers = numbers.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        position = self.trainer.position
        self.pending.append(_Pending(position.step, position.images_seen, rate, data_step, numbers, ready))

    def _read_one(self) -> Generator[Event, None, tuple[tuple[str, _Pending] | None, bool]]:
        """Reads the oldest step's numbers; returns (what is wrong and where, or None; whether to stop)."""
        pending = self.pending.popleft()
        if pending.ready is not None:
            pending.ready.synchronize()
        loss, grad_norm, stopping = pending.numbers.tolist()
        wrong = self.sentinel.check(loss=loss, grad_norm=grad_norm)
        if wrong:
            return (wrong, pending), False
        self.trainer.position = replace(self.trainer.position, loss_mean=self.sentinel.mean)
        if pending.step % self.config.train.log_every == 0 or pending.step == self.plan.total_steps:
            speed = self.clock.lap(pending.step) * self.config.train.batch_size
            self.last = TrainStep(
                step=pending.step,
                total_steps=self.plan.total_steps,
                loss=loss,
                grad_norm=grad_norm,
                learning_rate=pending.learning_rate,
                images_seen=pending.images_seen,
                images_per_second=speed,
                extra={"mfu": speed * self.image_cost, "memory_bytes": float(peak_memory(self.device))},
            )
            if self.world.is_main:
                self._log(self.last)
                yield from self.trackers.log(self.last)
            yield self.last
        return None, stopping > 0

    def _log(self, event: TrainStep) -> None:
        self._write_line(
            {k: v for k, v in event.as_json().items() if k not in ("event", "total_steps", "extra")} | event.extra
        )

    def _write_line(self, line: dict[str, Any]) -> None:
        path = self.run_folder / "metrics.jsonl"
        with files.user_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _bad_step(self, wrong: str, pending: _Pending) -> Iterator[Event]:
        """Keeps the evidence, then goes back to the last good checkpoint, or raises where the run is to stop."""
        yield from self._finish_write()
        evidence = (
            self.run_folder / f"bad-step-{pending.step:07d}-batch-{pending.data_step:07d}-rank{self.world.rank}.json"
        )
        files.write_json(
            evidence,
            {"step": pending.step, "what": wrong, "learning_rate": pending.learning_rate,
             "indices": self.source.indices(pending.data_step)},
        )  # fmt: skip
        yield Saved(what="bad batch", path=evidence)
        if self.config.train.on_nonfinite == "stop" or self.rollbacks >= ROLLBACKS_IN_A_ROW:
            raise bad_step_error(pending.step, wrong, run=self.run_folder, evidence=evidence, train=self.config.train)
        self.rollbacks += 1
        newest = self.writer.newest() or self.plan.resume_from
        good = read(newest) if newest else self.start
        assert good is not None, "kept since the start of a run that may roll back"
        skipped = [*good.position.skipped, [self._data_step_of(good), pending.data_step + 1]]
        yield Warn(
            text=f"step {pending.step}: {wrong}; back to step {good.position.step}, leaving out "
            f"{skipped[-1][1] - skipped[-1][0]} batches"
        )
        self._rewind(replace(good, position=replace(good.position, skipped=skipped)))

    @staticmethod
    def _data_step_of(snapshot: Snapshot) -> int:
        return snapshot.position.step + sum(b - a for a, b in snapshot.position.skipped)

    def _save(self, *, final: bool) -> Iterator[Event]:
        """Starts writing a checkpoint; a final one is waited for, and all processes raise what its writing raised."""
        yield from self._finish_write()
        self.writer.start(self.trainer.snapshot(whole=False))
        self.rollbacks = 0
        if final:
            path = failure = None
            try:
                path = self.writer.finish()
            except UserError as error:
                failure = error
            failure = self.world.broadcast_object(failure)  # the others wait here for the write
            self.world.barrier()  # gloo aborts a process that leaves while another still reads its last message
            if failure is not None:
                raise failure
            if path is not None:
                yield Saved(what="checkpoint", path=path)

    def _finish_write(self) -> Iterator[Event]:
        """Ends the write under way; a disk that is full is reported, and the older checkpoints stay."""
        try:
            path = self.writer.finish()
        except UserError as error:
            yield Warn(text=f"checkpoint not written, training goes on, older ones are kept: {error.what}")
        else:
            if path is not None:
                yield Saved(what="checkpoint", path=path)

    def _drain_and_stop(self, stop: StopRequest) -> Iterator[Event]:
        while self.pending:
            bad, _ = yield from self._read_one()
            if bad:
                yield from self._bad_step(*bad)
                break
        yield from self._save(final=True)
        yield Summary(
            title=f"stopped after step {self.trainer.position.step}, which is saved",
            rows={},
            next_command=f"mpdit train --run {self.run_folder}",
        )
        raise Interrupted(stop.received or 15)

    def _finish(self) -> Iterator[Event]:
        position = self.trainer.position
        loss = self.last.loss if self.last else float("nan")
        yield Summary(
            title=f"trained {self.run_folder}",
            rows={
                "steps": f"{position.step}",
                "images seen": f"{position.images_seen:,}",
                "loss": f"{loss:.4f}",
            },
            next_command=f"mpdit sample {self.run_folder}",
        )
        yield Result(
            data={
                "run": self.run_folder,
                "step": position.step,
                "images_seen": position.images_seen,
                "loss": loss,
                "checkpoint": str(self.writer.newest() or ""),
            }
        )


def _describe(plan: Plan, device: torch.device, world: World) -> Iterator[Event]:
    """What `--dry-run` prints: the resolved configuration and what the run will need."""
    from mpdit_core.training.estimate import estimate

    precision = "bfloat16" if autocast_dtype(plan.config.train.precision, device) else "float32"
    needs = estimate(plan.config, total_steps=plan.total_steps, precision=precision, world_size=world.size)
    yield Note(text=to_toml(plan.config))
    free = files.free_bytes(plan.run)
    yield Summary(
        title=f"{plan.run} (nothing was written)",
        rows={
            "latents": f"{plan.latents.path}, {len(plan.latents):,} images",
            "steps": f"{plan.total_steps:,}",
            **needs.rows(),
            "disk free": f"{free / 2**30:.1f} GiB",
        },
        next_command="the same without --dry-run",
    )
    if needs.disk_bytes > free:
        yield Warn(text=f"the run needs {needs.disk_bytes / 2**30:.1f} GiB of disk, {free / 2**30:.1f} GiB are free")
    data: dict[str, Any] = {"run": plan.run, "config": plan.config.model_dump(), "total_steps": plan.total_steps}
    yield Result(data=data | {"memory_bytes": needs.memory.total, "disk_bytes": needs.disk_bytes, "free_bytes": free})
