"""`mpdit sample --trajectory`: x_t and the data predicted from it, along t, as a strip and as a moving picture.

The predicted data are `x_t - t·velocity` (guided as the samples are): what the model would answer if it had to stop.
They come from evaluations of their own at the states shown, so that any sampler may be looked at and none is disturbed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mpdit_core.pictures import contact_sheet, save_gif, save_png, square_columns
from mpdit_core.reporting import Event, Progress, Saved
from mpdit_core.sampling.generator import Generation, prepare, require_finite
from mpdit_core.sampling.views.common import ViewRequest, finish, image_names, opened

FRAMES = 25  # of the moving picture at most, with both ends
COLUMNS = 9  # of the strip at most, with both ends
ROWS = 8  # images in the strip at most


@dataclass(frozen=True)
class State:
    """One moment: time, x_t and predicted data, both as images [n, 3, H, W] uint8."""

    t: float
    x_t: Tensor
    data: Tensor


def trajectory(request: ViewRequest) -> Iterator[Event]:
    """Writes trajectory.png (two lines an image: x_t above, predicted data below) and trajectory.gif.

    Raises:
        UserError: as `prepare`; nothing is written then.
    """
    place = opened(request, "trajectory")
    generation = prepare(place.folder, request.options, device=place.device)
    states = yield from follow(generation)
    captions = image_names(generation, place.names)
    strip, moving = place.out / "trajectory.png", place.out / "trajectory.gif"
    shown = [states[i] for i in spread_out(len(states), COLUMNS)]
    cells = []
    labels = []
    for i in range(min(len(captions), ROWS)):
        cells += [[state.x_t[i : i + 1] for state in shown], [state.data[i : i + 1] for state in shown]]
        labels += [f"{captions[i]}: x_t", "predicted"]
    times = [f"t = {state.t:.2f}" for state in shown]
    save_png(contact_sheet(cells, row_labels=labels, column_labels=times), strip)
    columns = square_columns(len(captions))
    frames = [
        contact_sheet(
            [[state.x_t, state.data]],
            row_labels=[""],
            column_labels=["x_t", "predicted data"],
            title=f"t = {state.t:.2f}",
            cell_columns=columns,
        )
        for state in states
    ]
    save_gif(frames, moving)
    yield Saved(what="moving picture", path=moving)
    data = {"times": [state.t for state in states], "moving": str(moving)}
    rows = {"moving": str(moving), "steps": f"{len(states)} states shown"}
    yield from finish(place, request, "trajectory", picture=strip, rows=rows, data=data)


@torch.inference_mode()
def follow(generation: Generation) -> Generator[Event, None, list[State]]:
    """Samples all images as one batch; returns the list of `State`s that are shown, the last at t = 0."""
    indices = list(range(generation.options.num_samples))
    labels = [generation.labels(i) for i in indices]
    velocity, look = generation.velocity(labels), generation.velocity(labels)
    noise, generators = generation.noise(indices)
    passed: list[tuple[float, Tensor]] = [(1.0, noise)]
    for step in generation.sampler.steps(velocity, noise, generators):
        if step.t < passed[-1][0]:
            passed.append((step.t, step.x_t.cpu()))
        yield Progress(
            task="sample", done=len(passed) - 1, total=max(generation.sampler.num_steps, len(passed) - 1), unit="steps"
        )
    require_finite(passed[-1][1], indices)
    states = []
    for i in spread_out(len(passed), FRAMES):
        t, x_t = passed[i][0], passed[i][1].to(generation.device)
        data = x_t if t == 0 else x_t - t * look(x_t, x_t.new_full((1,), t))
        states.append(State(t, generation.decode(x_t), generation.decode(data)))
    return states


def spread_out(count: int, at_most: int) -> list[int]:
    """Up to `at_most` of the numbers 0..count-1, evenly, with both ends: (50, 3) → [0, 24, 49]."""
    if count <= at_most:
        return list(range(count))
    return [i * (count - 1) // (at_most - 1) for i in range(at_most)]
