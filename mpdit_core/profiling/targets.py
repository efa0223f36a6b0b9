"""The models to profile: presets, the names of published models, and models on disk, at any resolution.

To add an alias: a new size in `SIZES`, or a branch in `_alias`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

from mpdit_core.config import ModelConfig, RunConfig, Stage
from mpdit_core.errors import UserError
from mpdit_core.presets import load_preset, preset_names
from mpdit_core.profiling.options import ProfileOptions
from mpdit_core.reporting import Reporter, Skipped, silent
from mpdit_core.settings import merge, validate
from mpdit_core.size import Size

SIZES = ("S", "B", "L", "XL")

ALIASES = "DiT-XL/2 or SiT-B/4 (S, B, L, XL; patch 2, 4 or 8), MPDiT-XL/4x (two stages), MPDiT-XL/8x (three stages)"


@dataclass(frozen=True)
class Target:
    """A model to profile: its name as the user wrote it, and its configuration (a plan uses the epochs in it)."""

    name: str
    run: RunConfig

    @property
    def model(self) -> ModelConfig:
        return self.run.model

    @property
    def resolution(self) -> Size:
        return self.run.resolution

    @property
    def is_dense(self) -> bool:
        return self.model == self.model.dense()


def find_targets(options: ProfileOptions, *, report: Reporter = silent) -> list[Target]:
    """The models asked for, or all presets without those that cannot have the resolution; these are reported.

    Raises:
        UserError: an unknown name or key, or a resolution that the patch sizes do not divide
            (`resolution-does-not-fit`).
    """
    settings, resolution = options.settings, options.resolution
    if resolution is not None and "input_size" in settings.get("model", {}):
        raise UserError(
            "resolution and model.input_size determine each other",
            code="conflict",
            expected="one of them",
            remedy="leave the other out",
        )
    named = [(name, _named(name)) for name in options.preset]
    if options.model:
        from mpdit_core.models.model_folder import open_model  # imports torch, which counting does not need

        named.insert(0, (options.model, open_model(options.model).config))
    targets: list[Target] = []
    skipped: list[Skipped] = []
    for name, base in named or _all_presets(for_images=resolution is not None):
        native = _changed(base, settings)
        try:
            run = native if resolution is None else at_resolution(native, resolution)
        except UserError as error:
            if named:
                raise
            skipped.append(Skipped(path=name, reason=error.what))
            continue
        changed = "*" if settings else ""
        elsewhere = "" if run.resolution == native.resolution else f" @{run.resolution}"
        targets.append(Target(f"{name}{changed}{elsewhere}", run))
    if not targets:
        raise UserError(
            f"no preset fits the resolution {resolution}",
            code="resolution-does-not-fit",
            expected="a multiple of 16 pixels (two stages: 32, three stages: 64)",
        )
    for event in skipped:
        report(event)
    return targets if named else _without_duplicates(targets)


def _all_presets(*, for_images: bool) -> list[tuple[str, RunConfig]]:
    """All presets by name. `for_images`: without models of pixels, which are not for larger images."""
    runs = [load_preset(name) for name in preset_names()]
    return [(run.preset, run) for run in runs if not for_images or run.model.input_size < run.resolution]


def at_resolution(run: RunConfig, resolution: Size) -> RunConfig:
    """The same network for images of `resolution` pixels. Only latent size and position tables change.

    Raises:
        UserError: the sides of the latents would not be whole numbers, or not divisible by every patch size
            (`resolution-does-not-fit`).
    """
    factor = _factor(run)
    unit = factor * lcm(*(stage.patch_size for stage in run.model.stages))
    if not resolution.is_multiple(unit):
        near = Size(*(max(round(side / unit), 1) * unit for side in resolution))
        patches = ", ".join(str(stage.patch_size) for stage in run.model.stages)
        raise UserError(
            f"resolution {resolution} does not fit {run.preset}",
            code="resolution-does-not-fit",
            expected=f"a multiple of {unit} pixels (latents have 1/{factor} of the side, patches have {patches})",
            remedy=f"--resolution {near}",
        )
    model = run.model.model_copy(update={"input_size": resolution // factor})
    return run.model_copy(update={"resolution": resolution, "model": model})


def _named(name: str) -> RunConfig:
    found = _alias(name)
    if found is not None:
        return found
    try:
        return load_preset(name)
    except UserError as error:
        raise UserError(
            error.what, code=error.code, expected=f"{error.expected}; or a name such as {ALIASES}", remedy=error.remedy
        ) from None


def _alias(name: str) -> RunConfig | None:
    """The configuration at 256 pixels for `DiT-XL/2` and similar names; None for other names."""
    dense = re.fullmatch(rf"(?:DiT|SiT)-({'|'.join(SIZES)})/([248])", name, flags=re.IGNORECASE)
    if dense:
        run = load_preset(f"dit-{dense[1].lower()}-256")
        stages = (Stage(int(dense[2]), run.model.depth),)
        return run.model_copy(update={"preset": name, "model": run.model.model_copy(update={"stages": stages})})
    match = re.fullmatch(r"MPDiT-(B|L|XL)(?:/([48])x)?", name, flags=re.IGNORECASE)
    if match:
        size = match[1].lower()
        run = load_preset(f"v2-{size}-512" if match[2] == "8" else f"{size}-256")
        return at_resolution(run, Size.square(256)).model_copy(update={"preset": name})
    return None


def _changed(run: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    if not settings:
        return run
    changed = validate(RunConfig, merge(run.model_dump(), settings), origin=run.preset)
    return changed.model_copy(update={"resolution": changed.model.input_size * _factor(run)})


def _factor(run: RunConfig) -> int:
    """Pixels per latent pixel along a side."""
    return run.resolution.height // run.model.input_size.height


def _without_duplicates(targets: list[Target]) -> list[Target]:
    """Each network once: of `xl-256 @512` and `xl-512`, which are the same, only the second."""
    kept: list[Target] = []
    for target in sorted(targets, key=lambda target: "@" in target.name):
        if "@" not in target.name or all(target.model != other.model for other in kept):
            kept.append(target)
    return sorted(kept, key=targets.index)
