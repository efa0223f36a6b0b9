"""Runs a sampler from noise at t = 1 to data at t = 0, and checks every state. All sampling uses `integrate`."""

# The checks are for plugins, which may yield anything.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from mpdit_core.config import ModelConfig
from mpdit_core.plugins import broken, plugin_errors
from mpdit_core.protocols import NoiseSource, Sampler, Step, VelocityFn
from mpdit_core.runtime import seeding


def starting_noise(
    config: ModelConfig, *key: int | str, indices: Iterable[int]
) -> tuple[Tensor, list[torch.Generator]]:
    """x at t = 1 of the images with these numbers, [n, C, h, w] float32 on the CPU, and one noise source per image.

    Image i depends only on `key` (a seed and a purpose) and i. Stochastic samplers draw further noise from its source.
    """
    sources = [seeding.generator(*key, i) for i in indices]
    shape = (config.channels, *config.input_size)
    return torch.stack([torch.randn(shape, generator=source) for source in sources]), sources


def integrate(
    sampler: Sampler,
    velocity_fn: VelocityFn,
    noise: Tensor,
    noise_source: NoiseSource = None,
    *,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """x at t = 0, [B, C, h, w], from `noise [B, C, h, w]` at t = 1.

    Args:
        noise_source: random generators for a stochastic sampler: one per image, or one for the batch.
        on_step: called with the state after each step; an exception from it ends the integration.

    Raises:
        UserError: the sampler of a plugin failed or broke its contract (`broken-plugin`).
    """
    t, x_t = 1.0, noise
    for step in _steps(sampler, velocity_fn, noise, noise_source):
        t, x_t = step
        if x_t.shape != noise.shape or x_t.dtype != noise.dtype:
            given, wanted = (f"{x.dtype} {list(x.shape)}" for x in (x_t, noise))
            raise broken(sampler, "in steps", f"it yields x_t {given}, not {wanted} like the noise")
        if on_step is not None:
            on_step(step)
    if t != 0:
        raise broken(sampler, "in steps", f"it ends at t = {t:g}, not at t = 0")
    return x_t


def _steps(sampler: Sampler, velocity_fn: VelocityFn, noise: Tensor, noise_source: NoiseSource) -> Iterator[Step]:
    with plugin_errors(sampler, "in steps"):
        steps = iter(sampler.steps(velocity_fn, noise, noise_source))
    while True:
        with plugin_errors(sampler, "in steps"):
            step = next(steps, None)
        if step is None:
            return
        if not (isinstance(step, Step) and isinstance(step.x_t, Tensor) and isinstance(step.t, int | float)):
            raise broken(sampler, "in steps", f"it yields {type(step).__name__}, not Step(t: float, x_t: tensor)")
        yield step
