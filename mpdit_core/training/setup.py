"""Everything decided before a run's first step: its configuration, latents, folder, and where it goes on from.

Nothing is written here but the run's folder, and that only after all checks have passed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpdit_core.config import RunConfig, differences
from mpdit_core.data.latents import LatentFolder, find_latents
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import find_checkpoints
from mpdit_core.presets import resolve
from mpdit_core.reporting import Event, Note, Warn
from mpdit_core.runtime import files
from mpdit_core.settings import merge, parse_assignments, read_toml, to_toml, validate
from mpdit_core.training.state.checkpoints import check_same_data

# What may change when a run goes on: nothing that alters the sequence of updates already made.
RESUMABLE = re.compile(
    r"train\.(steps|epochs|log_every|checkpoint_every|keep_last|keep_every|trackers|compile|precision|parallel"
    r"|accumulation|activation_checkpointing|on_nonfinite|spike_factor)|preview\..*"
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `mpdit train` was asked for."""

    preset: str | None = None
    config_file: Path | None = None
    assignments: Sequence[str] = ()
    latents: Path | None = None
    run: Path | None = None
    steps: int | None = None
    resume: bool = True
    init_from: str | None = None
    device: str = "auto"
    dry_run: bool = False
    runs_root: Path = Path("runs")
    latents_root: Path = Path("latents")


@dataclass(frozen=True)
class Plan:
    """A run that can start."""

    config: RunConfig
    latents: LatentFolder
    run: Path
    total_steps: int
    resume_from: Path | None
    events: list[Event] = field(default_factory=list)  # what the user should hear of how it was decided


def prepare(options: TrainOptions, *, world_size: int = 1) -> Plan:
    """Decides all of the above. Raises `UserError` for anything that could not work."""
    events: list[Event] = []
    saved = _saved_config(options)
    config = _configuration(options, saved)
    folder = options.latents or _saved_latents(options, saved)
    latents = LatentFolder(folder or find_latents(options.latents_root, resolution=config.resolution))
    config = fit_to_latents(config, latents.spec, fixed=_keys_given(options), events=events)
    check_division(config, world_size)
    resume_from = None
    if saved is not None:
        assert options.run is not None
        changed = [d for d in differences(saved, config) if not RESUMABLE.match(d)]
        if changed:
            raise UserError(
                f"{options.run} was begun with another configuration: {'; '.join(changed)}",
                expected="the same, to go on with it",
                remedy=f"mpdit train --run {options.run}   goes on unchanged; leave --run out to begin another run, "
                f"with --init-from {options.run} from these weights",
            )
        check_same_data(LatentSpec.model_validate_json((options.run / "latents.json").read_text()), latents.spec)
        resume_from = _newest(options.run, events)
    run = options.run or _next_run(options.runs_root, config.preset)
    return Plan(config, latents, run, total_steps(config, len(latents)), resume_from, events)


def create_run(plan: Plan) -> None:
    """Makes the run's folder, or brings its configuration up to date."""
    with files.user_errors(plan.run):
        plan.run.mkdir(parents=True, exist_ok=True)
    files.write_text(plan.run / "config.toml", to_toml(plan.config))
    files.write_text(plan.run / "latents.json", plan.latents.spec.model_dump_json(indent=2) + "\n")


def total_steps(config: RunConfig, images: int) -> int:
    """Steps of the run: as given, or as many as fit into the epochs."""
    if config.train.steps is not None:
        return config.train.steps
    return max(1, config.train.epochs * images // config.train.batch_size)


def fit_to_latents(config: RunConfig, spec: LatentSpec, *, fixed: set[str], events: list[Event]) -> RunConfig:
    """The configuration with the latents' size, channels and number of classes.

    Args:
        fixed: dotted keys the user gave; a conflict with one of these is refused, not adapted.

    Raises:
        UserError: another resolution than the configuration's, or a conflict with a fixed key.
    """
    if spec.resolution != config.resolution:
        raise UserError(
            f"{spec.folder} holds latents of {spec.resolution} px, {config.preset} is for {config.resolution} px",
            expected=f"latents of {config.resolution} px",
            remedy=f"mpdit encode-latents {spec.source} --resolution {config.resolution}",
        )
    found = {
        "input_size": spec.latent_side,
        "channels": spec.autoencoder.channels,
        "num_classes": len(spec.class_names),
    }
    changes = {key: value for key, value in found.items() if getattr(config.model, key) != value}
    for key, value in changes.items():
        given = getattr(config.model, key)
        if f"model.{key}" in fixed:
            raise UserError(f"model.{key} = {given}, but the latents have {value}", remedy=f"leave model.{key} out")
        events.append(Note(text=f"model.{key} = {value}, as the latents have it (the preset says {given})"))
    tree = config.model_dump()
    return validate(RunConfig, merge(tree, {"model": changes}), origin=f"{config.preset} on {spec.folder}")


def check_division(config: RunConfig, world_size: int) -> None:
    """Raises `UserError` when the batch cannot be shared evenly, and proposes what can."""
    train = config.train
    parts = world_size * train.accumulation
    if train.batch_size % parts:
        near = round(train.batch_size / parts) * parts or parts
        shares = [n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0 and n % world_size == 0]
        accumulations = ", ".join(str(n // world_size) for n in shares[:6])
        raise UserError(
            f"train.batch_size {train.batch_size} cannot be shared by {world_size} processes × accumulation "
            f"{train.accumulation}",
            expected=f"a multiple of {parts}, e.g. {near}",
            remedy=f"--set train.batch_size={near}"
            + (f", or --set train.accumulation= one of {accumulations}" if accumulations else ""),
        )


def _saved_config(options: TrainOptions) -> RunConfig | None:
    """The configuration of the run that is to go on, or None for a new run."""
    if options.run is None or not options.run.exists() or not any(options.run.iterdir()):
        return None
    if not (options.run / "config.toml").exists():
        raise UserError(f"{options.run} is not empty and not a run", expected="a run of `mpdit train`, or a new folder")
    if not options.resume:
        raise UserError(
            f"{options.run} holds a run already, and --no-resume was given",
            remedy="choose another --run, or leave --no-resume out to go on with it",
        )
    return validate(RunConfig, read_toml(options.run / "config.toml"), origin=str(options.run / "config.toml"))


def _configuration(options: TrainOptions, saved: RunConfig | None) -> RunConfig:
    flags = {"train": {"steps": options.steps}}
    if saved is not None and options.preset is None and options.config_file is None:
        tree = merge(saved.model_dump(), parse_assignments(options.assignments))
        if options.steps is not None:
            tree["train"]["steps"] = options.steps
        return validate(RunConfig, tree)
    config = resolve(preset=options.preset, file=options.config_file, assignments=options.assignments, flags=flags)
    if saved is None:
        return config
    # A run that goes on keeps what it took from its latents.
    model = {key: getattr(saved.model, key) for key in ("input_size", "channels", "num_classes")}
    given = _keys_given(options)
    adapted = {key: value for key, value in model.items() if f"model.{key}" not in given}
    return validate(RunConfig, merge(config.model_dump(), {"model": adapted}))


def _keys_given(options: TrainOptions) -> set[str]:
    tree = read_toml(options.config_file) if options.config_file else {}
    tree = merge(tree, parse_assignments(options.assignments))
    model = tree.get("model", {})
    return {f"model.{key}" for key in model} if isinstance(model, dict) else set()


def _saved_latents(options: TrainOptions, saved: RunConfig | None) -> Path | None:
    if saved is None or options.run is None:
        return None
    spec = LatentSpec.model_validate(files.read_json(options.run / "latents.json"), strict=False)
    return Path(spec.folder)


def _newest(run: Path, events: list[Event]) -> Path | None:
    complete, torn = find_checkpoints(run)
    for folder, reason in torn:
        events.append(Warn(text=f"passing over {folder}: {reason}"))
    if complete:
        events.append(Note(text=f"going on from {complete[-1]}"))
        return complete[-1]
    events.append(Warn(text=f"{run} has no complete checkpoint: starting again from step 0"))
    return None


def _next_run(root: Path, preset: str) -> Path:
    pattern = re.compile(rf"{re.escape(preset)}-(\d+)")
    numbers = [int(match.group(1)) for path in root.glob("*") if (match := pattern.fullmatch(path.name))]
    return root / f"{preset}-{max(numbers, default=0) + 1}"
