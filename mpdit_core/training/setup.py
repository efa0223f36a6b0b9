"""Everything decided before a run's first step: its configuration, its latents and its folder.

Nothing is written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mpdit_core import presets
from mpdit_core.config import RESUMABLE, Layers, RunConfig
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import LatentSpec, find_latents
from mpdit_core.errors import UserError
from mpdit_core.flow.loss import Terms, build_terms, needs, network_shape, require_fit
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.plugins import option_values
from mpdit_core.reporting import Note, Reporter
from mpdit_core.settings import changes, flatten
from mpdit_core.training.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run before its first step. `resumes`: its folder holds a run already."""

    config: RunConfig
    origins: dict[str, str]  # where each value came from, by dotted key
    latents: LatentFolder
    terms: Terms  # of the loss
    run: RunFolder
    total_steps: int
    resumes: bool
    trust: bool  # whether code may be loaded that the run's configuration or its latents refer to

    @property
    def teacher_features(self) -> int:
        """Features per token of the teacher that the loss needs; 0 where it needs none."""
        return self.latents.teacher.plan.features if "teacher" in needs(self.terms) else 0


def plan_run(options: TrainOptions, *, report: Reporter, world_size: int = 1) -> RunPlan:
    """The plan of the run that `options` ask for. Raises `UserError` for settings that cannot work."""
    saved = _saved_run(options)
    layers, latents = _layers_and_latents(options, saved, report)
    for fit in (_fit_resolution, _fit_model, _fit_preview):
        layers = fit(layers, latents.spec, report)
    config = layers.config()
    typed = options.settings.get("objective", {})
    terms = build_terms(config.objective, trusted=lambda name: options.trust or name in typed)
    every_option = {name: option_values(term) for name, term in terms.items()}  # for the record in the run's folder
    config = config.model_copy(update={"objective": config.objective | every_option})
    _require_division(config, world_size)
    _require_fitting_terms(config, terms, latents)
    if saved is not None:
        _require_same_run(saved, config, latents.spec, terms)
    return RunPlan(
        config=config,
        origins=layers.origins,
        latents=latents,
        terms=terms,
        run=saved or (RunFolder(options.run) if options.run else RunFolder.next(options.runs_root, config.preset)),
        total_steps=total_steps(config, len(latents)),
        resumes=saved is not None,
        trust=options.trust,
    )


def _layers_and_latents(
    options: TrainOptions, saved: RunFolder | None, report: Reporter
) -> tuple[Layers, LatentFolder]:
    """The configuration and the latents. Without preset and file, the latents determine the preset of a new run."""
    if saved is None and options.preset is None and options.config is None:
        latents = LatentFolder(options.latents or find_latents(options.latents_root))
        preset, fit = _proposed_preset(latents, report)
    else:
        latents, preset, fit = None, options.preset, {}
    before = saved.config() if saved else None
    layers = presets.layers(
        base=Layers().over(before.model_dump(), f"the run {saved}") if before else None,
        preset=preset,
        fit=fit,
        file=options.config,
        settings=options.settings,
    )
    if options.steps is not None:
        layers = layers.over({"train": {"steps": options.steps}}, "--steps", fixed=True)
    if before and layers.config().train.precision == "auto" and layers.origin("train.precision") != "--set":
        # `auto` of a preset or file: the run keeps the precision that was measured at its start
        layers = layers.over({"train": {"precision": before.train.precision}}, f"the run {saved}")
    if latents is None:
        folder = options.latents or (Path(saved.latents().folder) if saved else None)
        latents = LatentFolder(folder or find_latents(options.latents_root, resolution=layers.config().resolution))
    return layers, latents


def _proposed_preset(latents: LatentFolder, report: Reporter) -> presets.Proposal:
    """The preset that fits the latents, reported in one line."""
    manifest = latents.manifest
    shape, resolution = manifest.plan.latent_shape, manifest.plan.resolution
    proposed = presets.propose_preset(resolution=resolution, latent_shape=shape, images=manifest.count)
    changed = "".join(f", {key} = {value}" for key, value in flatten(proposed.fit).items())
    what = f"{manifest.count:,} latents {' × '.join(map(str, shape))} of {resolution} px in {latents.path}"
    report(Note(text=f"preset {proposed.preset}{changed}, for {what}; --preset selects another"))
    return proposed


def total_steps(config: RunConfig, images: int) -> int:
    """Steps of the run: as given, or as many as fit into the epochs."""
    if config.train.steps is not None:
        return config.train.steps
    return max(1, config.train.epochs * images // config.train.batch_size)


def _fit_resolution(layers: Layers, spec: LatentSpec, report: Reporter) -> Layers:
    """The layers with the latents' resolution on top where they are rectangles: presets are for squares.

    Raises:
        UserError: the latents have another resolution (`wrong-resolution`).
    """
    config = layers.config()
    if not spec.resolution.is_square and config.resolution.is_square and "resolution" not in layers.fixed:
        text = f"resolution = {spec.resolution}, taken from the latents ({config.preset}: {config.resolution})"
        report(Note(text=text))
        return layers.over({"resolution": spec.resolution.plain()}, "latents")
    if spec.resolution != config.resolution:
        mode = "" if spec.autoencoder.mode == "RGB" else f" --mode {spec.autoencoder.mode}"
        raise UserError(
            f"{spec.folder} holds latents of {spec.resolution} px, {config.preset} is for {config.resolution} px",
            code="wrong-resolution",
            expected=f"latents of {config.resolution} px",
            remedy=f"mpdit encode-latents {spec.source} --resolution {config.resolution} "
            f"--autoencoder {spec.autoencoder.id}{mode}",
        )
    return layers


def _fit_model(layers: Layers, spec: LatentSpec, report: Reporter) -> Layers:
    """The layers with the latents' size, channels and number of classes on top.

    Raises:
        UserError: the user gave a value that differs from theirs (`latents-do-not-fit`).
    """
    model = layers.config().model
    found = {
        "input_size": spec.latent_size,
        "channels": spec.autoencoder.channels,
        "num_classes": len(spec.class_names),
    }
    adapted = {key: value for key, value in found.items() if getattr(model, key) != value}
    for key, value in adapted.items():
        given = getattr(model, key)
        if f"model.{key}" in layers.fixed:
            raise UserError(
                f"model.{key} = {given}, but the latents have {value}",
                code="latents-do-not-fit",
                remedy=f"leave model.{key} out",
            )
        report(Note(text=f"model.{key} = {value}, taken from the latents ({layers.origin(f'model.{key}')}: {given})"))
    return layers.over({"model": adapted}, "latents")


def _fit_preview(layers: Layers, spec: LatentSpec, report: Reporter) -> Layers:
    """The layers without guidance of the previews, where the latents have no classes.

    Raises:
        UserError: the user asked for it (`no-classes`).
    """
    scale = layers.config().preview.guidance_scale
    if spec.class_names or scale == 1:
        return layers
    if "preview.guidance_scale" in layers.fixed:
        raise UserError(
            f"preview.guidance_scale = {scale:g}, but the latents have no classes",
            code="no-classes",
            expected="1, which is off: classifier-free guidance needs classes",
            remedy="leave preview.guidance_scale out",
        )
    report(Note(text="preview.guidance_scale = 1: classifier-free guidance needs classes, and the latents have none"))
    return layers.over({"preview": {"guidance_scale": 1.0}}, "latents")


def _saved_run(options: TrainOptions) -> RunFolder | None:
    """The run to resume, or None for a new run."""
    path = options.run
    if path is None or RunFolder.is_free(path):
        return None
    if not RunFolder.exists(path):
        raise UserError(
            f"{path} is not empty and not a run",
            code="not-a-run",
            expected="a run of `mpdit train`, or a new folder",
            remedy="choose another --run",
        )
    if not options.resume:
        raise UserError(
            f"{path} already holds a run, and --no-resume is given",
            code="run-exists",
            remedy="choose another --run, or resume it: leave --no-resume out",
        )
    return RunFolder(path)


def _require_division(config: RunConfig, world_size: int) -> None:
    """Raises `UserError` when the batch cannot be shared evenly, and proposes one that can."""
    train = config.train
    parts = world_size * train.accumulation
    if train.batch_size % parts:
        near = round(train.batch_size / parts) * parts or parts
        possible = (n for n in range(1, 10_001) if train.batch_size % (n * world_size) == 0)
        accumulations = ", ".join(str(n) for n in islice(possible, 6))
        raise UserError(
            f"train.batch_size {train.batch_size} cannot be divided among {world_size} processes × accumulation "
            f"{train.accumulation}",
            code="batch-not-divisible",
            expected=f"a multiple of {parts}, e.g. {near}",
            remedy=f"--set train.batch_size={near}"
            + (f", or --set train.accumulation=N, N one of {accumulations}" if accumulations else ""),
        )


def _require_fitting_terms(config: RunConfig, terms: Terms, latents: LatentFolder) -> None:
    """Raises `UserError` when a term of the loss does not suit the network, the batch size or the latents."""
    require_fit(terms, config.model)
    if "negative" in needs(terms) and config.train.batch_size == 1:
        names = ", ".join(name for name, term in terms.items() if "negative" in term.needs)
        raise UserError(
            f"train.batch_size = 1, but the objective {names} compares each image with another of its batch",
            code="batch-too-small",
            expected="a batch of at least 2",
            remedy="--set train.batch_size=2",
        )
    if "teacher" in needs(terms):
        stored, grid = latents.teacher.plan, network_shape(config.model).token_grid
        assert grid is not None, "refused by `require_fit`"
        if grid != stored.grid:
            source, patch = latents.spec.source, config.model.stages[-2].patch_size
            raise UserError(
                f"the network has {grid[0]} × {grid[1]} coarse tokens, the features of {stored.name} in "
                f"{latents.path} are for {stored.grid.height} × {stored.grid.width}",
                code="grid-does-not-fit",
                expected="features for each token of the last coarse stage",
                remedy=f"mpdit encode-latents {source} --out {latents.path} --teacher {stored.name} "
                f"--teacher-patch-size {patch} --replace-teacher   (with the other options as before)",
            )


def _require_same_run(run: RunFolder, config: RunConfig, spec: LatentSpec, terms: Terms) -> None:
    """Raises `UserError` when a value or the data has changed with which the steps so far would have been different."""
    changed = changes(run.config(), config)
    fixed = [f"{key}: {old} → {new}" for key, (old, new) in changed.items() if key not in RESUMABLE]
    if fixed:
        raise UserError(
            f"{run} was started with a different configuration: {'; '.join(fixed)}",
            code="different-configuration",
            expected="the same values, to resume it",
            remedy=f"mpdit train --run {run}   resumes it unchanged; for another run from its weights omit --run, add "
            f"--init-from {run}",
        )
    saved = run.latents()
    compared = {"latents": (saved.fingerprint, spec.fingerprint, "give the old folder with --latents")}
    if "teacher" in needs(terms):
        again = "store the old ones again (encode-latents --replace-teacher)"
        compared["teacher's features"] = (saved.teacher, spec.teacher, again)
    for what, (old, new, remedy) in compared.items():
        if old != new:
            raise UserError(
                f"the {what} in {spec.folder} are not those that this run was trained on",
                code="different-latents",
                expected=f"{what} with the fingerprint {old[:12]}, not {new[:12]}",
                remedy=f"{remedy}, or start another run (--init-from uses these weights)",
            )
