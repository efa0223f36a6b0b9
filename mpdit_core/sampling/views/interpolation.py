"""`mpdit sample --interpolate A,B`: from image A to image B along the arc between their noises.

A and B are numbers of images as in file names. Normal noise of many dimensions lies close to a sphere, so a straight
line between two draws would leave it; the arc stays. The class stays fixed along a row: one row for each class of A and
B, or for each of `--classes`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mpdit_core.errors import UserError
from mpdit_core.pictures import contact_sheet, save_png
from mpdit_core.reporting import Event, Progress
from mpdit_core.sampling.generator import Generation, prepare, require_finite
from mpdit_core.sampling.views.common import ViewRequest, finish, opened, short_name


def read_pair(text: str) -> tuple[int, int]:
    """`3,17` → (3, 17). Raises `UserError` for anything but two different numbers of images."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or int(parts[0]) == int(parts[1]):
        raise UserError(
            f"--interpolate {text}", expected="A,B: two different numbers of images", remedy="e.g. --interpolate 0,1"
        )
    return int(parts[0]), int(parts[1])


def slerp(a: Tensor, b: Tensor, s: float) -> Tensor:
    """The point `s` of the way from `a` to `b` along the arc between them; exactly `a` at 0 and `b` at 1.

    `sin((1 - s)·angle)/sin(angle)·a + sin(s·angle)/sin(angle)·b` (Shoemake 1985), the angle being that of the flattened
    tensors. Of opposite or parallel tensors, which have no one arc, the straight line.
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).double()
    angle = torch.acos(cosine.clamp(-1, 1))
    if float(torch.sin(angle)) < 1e-6:
        return (1 - s) * a + s * b
    u, v = torch.sin((1 - s) * angle) / torch.sin(angle), torch.sin(s * angle) / torch.sin(angle)
    return float(u) * a + float(v) * b


def interpolate(request: ViewRequest, pair: str) -> Iterator[Event]:
    """Writes interpolation.png, `num_samples` images in a row with both ends.

    Raises:
        UserError: as `read_pair` and `prepare`, or fewer than 2 images; nothing is written then.
    """
    first, last = read_pair(pair)
    count = request.options.num_samples
    if count < 2:
        raise UserError(f"--num-samples {count}: an interpolation has two ends", expected="at least 2")
    place = opened(request, "interpolation")
    generation = prepare(place.folder, request.options, device=place.device)
    rows = _classes(generation, first, last)
    if len(rows) * count > 256:
        raise UserError(f"{len(rows)} classes of {count} images", expected="up to 256 images in one picture")
    cells = []
    for done, label in enumerate(rows):
        yield Progress(task="interpolation", done=done, total=len(rows), unit="rows")
        images = _row(generation, first, last, label=label)
        cells.append([images[i : i + 1] for i in range(count)])
    yield Progress(task="interpolation", done=len(rows), total=len(rows), unit="rows")
    captions = [f"{i / (count - 1):.2f}" for i in range(count)]
    captions = [f"image {first}", *captions[1:-1], f"image {last}"]
    picture = place.out / "interpolation.png"
    drawn = contact_sheet(
        cells, row_labels=[short_name(place.names[label]) for label in rows], column_labels=captions, row_axis="class"
    )
    save_png(drawn, picture)
    yield from finish(
        place,
        request,
        "interpolation",
        picture=picture,
        rows={"from, to": f"noise of image {first}, noise of image {last}", "steps": f"{count} images a row"},
        data={"from": first, "to": last, "classes": rows},
    )


def _classes(generation: Generation, first: int, last: int) -> list[int]:
    """Labels of the rows: those that --classes names, else those of the two images."""
    if generation.options.classes.strip() in ("all", "random"):
        return list(dict.fromkeys([generation.labels(first), generation.labels(last)]))
    return list(dict.fromkeys(generation.labels.classes or ()))


@torch.inference_mode()
def _row(generation: Generation, first: int, last: int, *, label: int) -> Tensor:
    """Images [n, 3, H, W] uint8. What a stochastic sampler draws on the way is the first image's noise throughout."""
    count = generation.options.num_samples
    (a, b), _ = generation.noise([first, last])
    _, generators = generation.noise([first] * count)
    x_t = torch.stack([slerp(a, b, i / (count - 1)) for i in range(count)])
    for step in generation.sampler.steps(generation.velocity([label] * count), x_t, generators):
        x_t = step.x_t
    require_finite(x_t, list(range(count)))
    return generation.decode(x_t)
