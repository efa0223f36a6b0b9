"""Snapshots of a run's power-function EMAs, and models of any EMA width, made from them after training.

    RUN/ema/step-0000400.safetensors    the tracked averages after 400 steps, in float16:
        <first>.<parameter>                 the average of the first width
        <width>-<first>.<parameter>         how another one differs from it

Differences are small, and so is their rounding in float16; the averages of a step share the rounding of the first one.
For a width narrower than the tracked ones, the coefficients of a step have both signs, so that this rounding cancels.
A snapshot is written whole or not at all, with a checksum; the same averages give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import FILE_METADATA, ModelFolder, parameter_shapes, require_shapes
from mpdit_core.models.power_ema import MAX_AMPLIFICATION, MAX_RESIDUAL, Combination, Profile, combine, widths_within
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.runtime.checked_tensors import read_checked, write_checked

STORED = torch.float16


def write_snapshot(path: Path, averages: Mapping[float, Mapping[str, Tensor]]) -> None:
    """Writes the averages (on the CPU) of several widths. Raises `UserError` as `files.writing`."""
    (first, base), *others = averages.items()
    tensors = {f"{first}.{name}": _stored(tensor) for name, tensor in base.items()}
    for width, state in others:
        tensors |= {f"{width}-{first}.{name}": _stored(tensor - base[name]) for name, tensor in state.items()}
    write_checked(path, tensors, {})


def _stored(tensor: Tensor) -> Tensor:
    """In float16, or unchanged where a value is outside its range."""
    rounded = tensor.to(STORED)
    return rounded if bool(torch.isfinite(rounded).all()) else tensor


class ReconstructedModel(ModelFolder):
    """A checkpoint's model with other weights: the average of a width, at a step that has a snapshot.

    The weights are computed when they are first needed.
    """

    checkpoint: ModelFolder
    wanted: tuple[float, int | None]  # width and step, as `at_ema_width` was given them
    profiles: tuple[Profile, ...]
    combination: Combination

    @cached_property
    def weights_sha256(self) -> str:
        """The hash of the file that an export writes."""
        return hashlib.sha256(save(self._average, metadata=FILE_METADATA)).hexdigest()

    def weights(self) -> dict[str, Tensor]:
        """The average in float32. Raises `UserError` if a snapshot is missing (`no-such-file`) or damaged."""
        return dict(self._average)

    @cached_property
    def _average(self) -> dict[str, Tensor]:
        assert self.run is not None
        first = self.config.train.ema_widths[0]
        factors: dict[int, dict[str, float]] = {}  # of the parts of each step's snapshot; others differ from the first
        for (width, step), coefficient in zip(self.profiles, self.combination.coefficients, strict=True):
            parts = factors.setdefault(step, {str(first): 0.0})
            parts[str(first)] += coefficient
            if width != first:
                parts[f"{width}-{first}"] = coefficient
        shapes = parameter_shapes(self.config.model)
        average = {name: torch.zeros(shape) for name, shape in shapes.items()}
        for step, parts in factors.items():
            path = RunFolder(self.run).ema_snapshot(step)
            tensors, _ = read_checked(path)
            expected = {f"{part}.{name}": shape for part in parts for name, shape in shapes.items()}
            require_shapes(expected, tensors, where=path)
            for part, factor in parts.items():
                for name, total in average.items():
                    total.add_(tensors[f"{part}.{name}"], alpha=factor)
        return average


def at_ema_width(model: ModelFolder, width: float | None, step: int | None = None) -> ModelFolder:
    """The model with the average of `width` as its weights; without a width, with its stored weights.

    Args:
        step: step of the run at which the average ends; by default the last one with a snapshot, up to the model's.

    Raises:
        UserError: the model is not of a run (`not-a-run`), the run has no snapshots (`no-ema-snapshots`) or none of
            `step` (`no-such-snapshot`), or they cannot make this width (`width-out-of-reach`).
    """
    if isinstance(model, ReconstructedModel):
        if model.wanted == (width, step):
            return model
        model = model.checkpoint
    if width is None:
        return model
    steps = _steps_until(model, step)
    profiles = tuple(Profile(tracked, s) for s in steps for tracked in model.config.train.ema_widths)
    (combination,) = combine(profiles, [Profile(width, steps[-1])])
    if not combination.is_close:
        lowest, highest = widths_within(profiles, steps[-1])
        raise UserError(
            f"an EMA of width {width:g} cannot be made from the {len(steps)} snapshots of {model.run}: the closest "
            f"profile differs from it by {combination.residual:.1%} of its norm, and multiplies the rounding of "
            f"float16 by {combination.amplification:.1f}",
            code="width-out-of-reach",
            expected=f"a width from {lowest:.3g} to {highest:.3g}, where these are at most {MAX_RESIDUAL:.0%} and "
            f"{MAX_AMPLIFICATION:g}",
            remedy="more widths in train.ema_widths, or a smaller train.ema_snapshot_every, in a new run",
        )
    found = {"width": width, "step": steps[-1], "residual": combination.residual}
    return ReconstructedModel(
        path=model.path,
        config=model.config,
        latents=model.latents,
        step=steps[-1],
        images_seen=steps[-1] * model.config.train.batch_size,
        extra={name: value for name, value in model.extra.items() if name != "position"} | {"power_ema": found},
        checkpoint=model,
        wanted=(width, step),
        profiles=profiles,
        combination=combination,
    )


def _steps_until(model: ModelFolder, step: int | None) -> list[int]:
    """The steps with snapshots up to `step`, by default up to the model's."""
    if model.run is None or not RunFolder.exists(model.run):
        raise UserError(
            f"{model.path} is not a checkpoint of a run, and only runs keep snapshots of EMAs",
            code="not-a-run",
            expected="a run, or a checkpoint in one",
            remedy="mpdit export RUN OUT --ema-width W makes a model of the width W",
        )
    steps = RunFolder(model.run).ema_snapshot_steps()
    last = model.step if step is None else step
    until = [found for found in steps if found <= last]
    if not until or not model.config.train.ema_widths:
        raise UserError(
            f"{model.run} has no snapshots of power-function EMAs up to step {last}",
            code="no-ema-snapshots",
            expected="a run that was trained with train.ema_widths",
            remedy="mpdit train --set 'train.ema_widths=[0.05,0.1]' in a new run",
        )
    if step is not None and until[-1] != step:
        expected = ", ".join(map(str, steps))
        raise UserError(f"{model.run} has no snapshot of step {step}", code="no-such-snapshot", expected=expected)
    return until
