"""`mpdit sample --interpolate A,B`: from image A to image B along the arc between their noises.

A and B are numbers of images as in file names. Normal noise of many dimensions lies close to a sphere; a straight line
between two draws leaves the sphere, the arc does not. A row has one class: that of A, that of B, or one of `--classes`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpdit_core.errors import UserError
from mpdit_core.pictures import contact_sheet
from mpdit_core.reporting import Progress, Reporter, silent
from mpdit_core.sampling.generator import require_finite
from mpdit_core.sampling.options import SampleOptions, ViewResult
from mpdit_core.sampling.views.common import View, require_at_most, short_name

DEFAULT_SAMPLES = 9


def slerp(a: Tensor, b: Tensor, s: float) -> Tensor:
    """The point `s` of the way from `a` to `b` along the arc between them; exactly `a` at 0 and `b` at 1.

    `sin((1 - s)·angle)/sin(angle)·a + sin(s·angle)/sin(angle)·b` (Shoemake 1985), with the angle between the flattened
    tensors. Parallel and opposite tensors, which have no unique arc, give the straight line.
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).double()
    angle = torch.acos(cosine.clamp(-1, 1))
    if float(torch.sin(angle)) < 1e-6:
        return (1 - s) * a + s * b
    u, v = torch.sin((1 - s) * angle) / torch.sin(angle), torch.sin(s * angle) / torch.sin(angle)
    return float(u) * a + float(v) * b


def interpolation(options: SampleOptions, *, report: Reporter = silent) -> ViewResult:
    """Writes interpolation.png, `num_samples` images in a row with both ends.

    Raises:
        UserError: as `Generator`; the same image twice, or fewer than 2 images. Nothing is written then.
    """
    assert options.interpolate is not None
    first, last = options.interpolate
    if first == last or min(first, last) < 0:
        raise UserError(
            f"interpolation from image {first} to image {last}",
            code="invalid-value",
            expected="the numbers of two different images, such as 0,1",
        )
    view = View(options, "interpolation", default_samples=DEFAULT_SAMPLES)
    count = view.num_samples
    if count < 2:
        raise UserError(f"an interpolation of {count} image", code="invalid-value", expected="at least 2, its ends")
    generator = view.generator()
    named = generator.labels.classes if generator.options.classes not in ("all", "random") else None
    rows = list(dict.fromkeys(named or (generator.labels(first), generator.labels(last))))
    require_at_most(len(rows) * count)
    (a, b), _ = generator.noise([first, last])
    noise = torch.stack([slerp(a, b, i / (count - 1)) for i in range(count)])
    cells = []
    for done, label in enumerate(rows):
        report(Progress(task="interpolation", done=done, total=len(rows), unit="rows"))
        _, noise_sources = generator.noise([first] * count)  # a stochastic sampler draws that of `first` for all
        latents = generator.integrate(generator.velocity([label] * count), noise, noise_sources)
        require_finite(latents, list(range(count)))
        cells.append(generator.decode(latents).split(1))
    report(Progress(task="interpolation", done=len(rows), total=len(rows), unit="rows"))
    between = [f"{i / (count - 1):.2f}" for i in range(1, count - 1)]
    sheet = contact_sheet(
        cells,
        row_labels=[short_name(generator.class_names[label]) for label in rows],
        column_labels=[f"image {first}", *between, f"image {last}"],
        row_axis="class" if generator.network.config.num_classes else "",
    )
    facts = {"from, to": f"noise of image {first}, noise of image {last}", "steps": f"{count} images per row"}
    data = {"from": first, "to": last, "classes": rows}
    return view.finish(sheet, generator, facts=facts, data=data, report=report)
