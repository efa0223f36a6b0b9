"""`mpdit train`: from a configuration and a folder of latents to a run folder with checkpoints, metrics and previews.

The loop itself is in loop.py, what happens around its steps in hooks/, the state of the run in state/.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch

from mpdit_core.errors import Interrupted, UserError
from mpdit_core.models.model_folder import find_checkpoints, open_model
from mpdit_core.reporting import Note, Reporter, Warning, silent
from mpdit_core.runtime import files
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World, process_group
from mpdit_core.runtime.locks import locked
from mpdit_core.runtime.precision import choose_dtype, dtype_name
from mpdit_core.training.estimate import estimate, min_memory
from mpdit_core.training.hooks.evaluations import require_evaluation
from mpdit_core.training.loop import TrainingLoop
from mpdit_core.training.options import DryRunResult, ResourceEstimate, TrainOptions, TrainResult
from mpdit_core.training.session import Session
from mpdit_core.training.setup import RunPlan, plan_run
from mpdit_core.training.state.checkpoints import read_checkpoint
from mpdit_core.training.state.recorded_gradients import require_recordable
from mpdit_core.training.state.trainer import Trainer
from mpdit_core.training.trackers import Trackers, require_installed
from mpdit_core.training.warm_start import initialise_from


def train(options: TrainOptions, *, report: Reporter = silent) -> TrainResult | DryRunResult:
    """Trains a model, or resumes its training.

    Raises:
        UserError: an impossible option or setting; another training of the same run (`folder-in-use`); a bad loss
            (`diverged`); a full disk at the end.
        Interrupted: after a signal, with a checkpoint written.
    """
    device = select_device(options.device)
    with process_group(device) as world:
        plan = plan_run(options, report=report, world_size=world.size)
        require_installed(plan.config.train.trackers)
        require_evaluation(plan, options, device)
        require_recordable(plan.config.train, device, world)
        if options.dry_run:
            return _describe(plan, world, report)
        least = min_memory(plan.config, world_size=world.size)
        files.require_memory(least, what="the weights and one batch of the run")
        if not plan.resumes:
            _warn_of_disk(plan, world, report)
        plan = _settle_precision(plan, device, world)
        world.barrier()  # every process has chosen the run's folder before rank 0 makes it
        with ExitStack() as locks:
            checkpoint = world.on_main(lambda: _claim_folder(plan, locks, options.init_from, report))
            trainer = Trainer(
                plan.config, total_steps=plan.total_steps, device=device, world=world,
                terms=plan.terms, teacher_features=plan.teacher_features,
            )  # fmt: skip
            session = Session(plan=plan, trainer=trainer, device=device, world=world, report=report)
            try:
                _begin(session, checkpoint=checkpoint, given=options.init_from)
            except UserError:
                if world.is_main and not plan.resumes:
                    plan.run.withdraw()
                raise
            names = plan.config.train.trackers if world.is_main else ()
            trackers = Trackers(names, plan.run, plan.config, step=session.step, report=report)
            with closing(trackers):
                loop = TrainingLoop(session, trackers)
                try:
                    loop.run()
                except Interrupted as stopped:
                    raise Interrupted(stopped.signum, remedy=f"mpdit train --run {plan.run}") from None
            return TrainResult(
                run=plan.run.path,
                step=session.step,
                images_seen=trainer.position.images_seen,
                loss=loop.metrics.last.loss if loop.metrics.last else None,
                checkpoint=loop.checkpoints.newest(),
            )


def _settle_precision(plan: RunPlan, device: torch.device, world: World) -> RunPlan:
    """The plan with the type that rank 0 measures for `auto`. The run stores it, so that a resumed one keeps it."""
    config = plan.config
    if config.train.precision != "auto":
        return plan
    measured = world.on_main(lambda: dtype_name(choose_dtype("auto", device, config.model)))
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": measured})})
    return replace(plan, config=config, origins=plan.origins | {"train.precision": "measured"})


def _claim_folder(plan: RunPlan, locks: ExitStack, init_from: str | None, report: Reporter) -> Path | None:
    """Makes the run's folder, or brings it up to date; `locks` holds its lock until the job ends.

    Returns:
        the checkpoint to resume from, if there is one.
    """
    run = plan.run
    locks.enter_context(locked(run.path))
    if run.exists(run.path) and not plan.resumes:
        raise UserError(
            f"another process has just started the run {run}",
            code="folder-in-use",
            remedy="run the same command again",
        )
    checkpoint = _newest_complete(plan, report) if plan.resumes else None
    for folder in (run.path, run.path / "checkpoints", run.path / "ema", run.path / "samples", run.evals):
        files.remove_leftovers(folder)
    if plan.resumes and (checkpoint or init_from is None):
        init_from = run.init_from()
    run.write(plan.config, plan.latents.spec, init_from=init_from)
    return checkpoint


def _newest_complete(plan: RunPlan, report: Reporter) -> Path | None:
    """The newest complete checkpoint, if there is one.

    Raises:
        UserError: it is beyond the plan's last step (`nothing-to-train`).
    """
    complete, torn = find_checkpoints(plan.run.path)
    while complete:
        try:
            open_model(complete[-1]).verify()
            break
        except UserError as error:
            torn.append((complete.pop(), error.what))
    for folder, reason in torn:
        report(Warning(code="damaged-checkpoint", text=f"{folder} is ignored: {reason}"))
    if not complete:
        text = f"{plan.run} has no complete checkpoint: it starts from step 0"
        report(Warning(code="no-checkpoint", text=text))
        return None
    step = open_model(complete[-1]).step
    if step > plan.total_steps:
        raise UserError(
            f"{plan.run} is at step {step} already, beyond the requested {plan.total_steps}",
            code="nothing-to-train",
            expected=f"more than {step} steps, to continue the training",
            remedy=f"mpdit train --run {plan.run} --steps {2 * step}",
        )
    report(Note(text=f"resuming from {complete[-1]}"))
    return complete[-1]


def _begin(session: Session, *, checkpoint: Path | None, given: str | None) -> None:
    """Restores the checkpoint, or starts at step 0: with the weights of the run's `init_from`, or with random ones.

    Args:
        given: `init_from` as it was typed.
    """
    if checkpoint is not None:
        session.trainer.restore(read_checkpoint(checkpoint))
        if given:
            session.report(Note(text=f"the resumed run keeps its own weights; --init-from {given} is ignored"))
    elif init_from := session.run.init_from():
        initialise_from(session.trainer, init_from, session.plan.latents.spec, report=session.report)
    text = (
        f"{session.run}: step {session.step} of {session.plan.total_steps}, {session.config.train.batch_size} images "
        f"per step on {session.world.size} × {session.device.type}"
    )
    session.report(Note(text=text))


def _describe(plan: RunPlan, world: World, report: Reporter) -> DryRunResult:
    """What the run would be, and what it would need."""
    needed = _warn_of_disk(plan, world, report)
    return DryRunResult(
        run=plan.run.path,
        latents=plan.latents.path,
        images=len(plan.latents),
        total_steps=plan.total_steps,
        config=plan.config,
        origins=plan.origins,
        free_bytes=files.free_bytes(plan.run.path),
        **needed.model_dump(),
    )


def _warn_of_disk(plan: RunPlan, world: World, report: Reporter) -> ResourceEstimate:
    """What the run needs, after a warning if that is more disk than is free."""
    needed = estimate(plan.config, total_steps=plan.total_steps, world_size=world.size)
    free = files.free_bytes(plan.run.path)
    if needed.disk_bytes > free:
        text = f"the run needs {files.size_text(needed.disk_bytes)} of disk, but only {files.size_text(free)} are free"
        report(Warning(code="disk-too-small", text=text))
    return needed
