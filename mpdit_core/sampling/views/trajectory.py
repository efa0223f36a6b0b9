"""`mpdit sample --trajectory`: x_t and the data predicted from it, along t, as a strip and as a GIF.

The predicted data are `x_t - t·velocity`, guided as the samples are: the result of one step from there to t = 0. They
come from additional evaluations at the states shown, which do not change the sampling and work with any sampler. Rules
of guidance that depend on earlier evaluations have none to use in these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mpdit_core.flow.path import predicted_latents
from mpdit_core.pictures import contact_sheet, save_gif, square_columns
from mpdit_core.protocols import Step
from mpdit_core.reporting import Progress, Reporter, Saved, silent
from mpdit_core.sampling.generator import Generator, require_finite
from mpdit_core.sampling.options import SampleOptions, ViewResult
from mpdit_core.sampling.views.common import View, short_name

DEFAULT_SAMPLES = 6
FRAMES = 25  # at most in the GIF, with both ends
COLUMNS = 9  # at most in the strip, with both ends
ROWS = 8  # images at most in the strip


@dataclass(frozen=True)
class State:
    """One time t: x_t and the predicted data, both as images [n, 3, H, W] uint8."""

    t: float
    x_t: Tensor
    data: Tensor


def trajectory(options: SampleOptions, *, report: Reporter = silent) -> ViewResult:
    """Writes trajectory.png (two lines per image: x_t above, predicted data below) and trajectory.gif.

    Raises:
        UserError: as `Generator`; nothing is written then.
    """
    view = View(options, "trajectory", default_samples=DEFAULT_SAMPLES)
    generator = view.generator()
    states = follow(generator, report=report)
    labels = map(generator.labels, range(view.num_samples))
    names = [short_name(generator.class_names[label]) or f"image {i}" for i, label in enumerate(labels)]
    gif = view.out / "trajectory.gif"
    save_gif([_frame(state, square_columns(len(names))) for state in states], gif)
    report(Saved(what="GIF", path=gif))
    facts = {"GIF": str(gif), "steps": f"{len(states)} states shown"}
    data = {"times": [state.t for state in states], "gif": str(gif)}
    return view.finish(_strip(states, names), generator, facts=facts, data=data, report=report)


@torch.inference_mode()
def follow(generator: Generator, *, report: Reporter = silent) -> list[State]:
    """Samples all images as one batch; returns the states that are shown, the last at t = 0."""
    indices = list(range(generator.num_samples))
    noise, noise_sources = generator.noise(indices)
    passed = [(1.0, noise)]

    def keep(step: Step) -> None:
        if step.t < passed[-1][0]:
            passed.append((step.t, step.x_t.cpu()))
        done = len(passed) - 1
        report(Progress(task="sample", done=done, total=max(generator.sampler.num_steps, done), unit="steps"))

    labels = [generator.labels(i) for i in indices]
    generator.integrate(generator.velocity(labels), noise, noise_sources, on_step=keep)
    require_finite(passed[-1][1], indices)
    states = []
    for i in spread_out(len(passed), FRAMES):
        t, x_t = passed[i][0], passed[i][1].to(generator.device)
        data = x_t if t == 0 else predicted_latents(x_t, generator.velocity(labels)(x_t, t), t)
        states.append(State(t, generator.decode(x_t), generator.decode(data)))
    return states


def _strip(states: list[State], names: list[str]) -> Image.Image:
    shown = [states[i] for i in spread_out(len(states), COLUMNS)]
    cells, labels = [], []
    for i, name in enumerate(names[:ROWS]):
        cells += [[state.x_t[i : i + 1] for state in shown], [state.data[i : i + 1] for state in shown]]
        labels += [f"{name}: x_t", "predicted"]
    return contact_sheet(cells, row_labels=labels, column_labels=[f"t = {state.t:.2f}" for state in shown])


def _frame(state: State, columns: int) -> Image.Image:
    return contact_sheet(
        [[state.x_t, state.data]],
        row_labels=[""],
        column_labels=["x_t", "predicted data"],
        title=f"t = {state.t:.2f}",
        cell_columns=columns,
    )


def spread_out(count: int, at_most: int) -> list[int]:
    """Up to `at_most` of the numbers 0..count-1 at even distances, with both ends: (50, 3) → [0, 24, 49]."""
    if count <= at_most:
        return list(range(count))
    return [i * (count - 1) // (at_most - 1) for i in range(at_most)]
