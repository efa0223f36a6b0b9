"""`mpdit sample --nearest latents|pixels`: beside each sample the training images closest to it.

A model that has learnt to copy shows it: its samples lie closer to some training image than that image does to any
other. So each distance is given with that ratio; well below 1 is suspicious.

Training images come from the folder of latents, streamed; their mirror images are looked at too where the folder can
give them. In latents the distance is the root mean square of the difference of standardised latents (posterior means);
in pixels that of decoded images, in 8-bit levels. There are two passes, one for the samples and one for what was
found; of decoded images as many as fit into `KEPT` are kept for the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mpdit_core.data.autoencoders import LoadedAutoencoder
from mpdit_core.data.latents import LatentFolder, standardise
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import ModelFolder
from mpdit_core.pictures import labelled_grid, save_png
from mpdit_core.reporting import Progress, Reporter, Saved, Warning, silent
from mpdit_core.sampling.generator import Generator
from mpdit_core.sampling.options import SampleOptions, ViewResult
from mpdit_core.sampling.views.common import finish, open_view, short_name

Space = Literal["latents", "pixels"]
NEIGHBOURS = 4
DEFAULT_SAMPLES = 8
BLOCK = 512  # training images at once
DECODED_AT_ONCE = 64
KEPT = 2 * 2**30  # bytes of decoded images


@dataclass(frozen=True)
class Neighbours:
    """The closest of each query's, best first: `distance [n, k]` float64, `index [n, k]`, `mirrored [n, k]` bool."""

    distance: Tensor
    index: Tensor
    mirrored: Tensor


def nearest(options: SampleOptions, *, report: Reporter = silent) -> ViewResult:
    """Writes nearest.png: a row for each sample, then its neighbours with number and distance.

    Raises:
        UserError: as `Generator`; the training latents are not there (`no-training-latents`) or are of another shape
            (`other-latents`).
    """
    assert options.nearest is not None
    request = open_view(options, "nearest", default_samples=DEFAULT_SAMPLES, drawn_per_sample=NEIGHBOURS + 1)
    training = find_training_images(request.folder, options.latents)
    if request.folder.latents and training.spec.fingerprint != request.folder.latents.fingerprint:
        text = f"{training.path} holds other latents than those the model was trained on"
        report(Warning(code="other-latents", text=text))
    generator = request.generator()
    batches = list(generator.batches(generator.blocks()))
    made = torch.cat([batch.images for batch in batches if batch.images is not None])
    queries = made if options.nearest == "pixels" else torch.cat([batch.latents for batch in batches])
    points = TrainingPoints(training, generator, options.nearest)
    found, ratios = _neighbours_and_ratios(points, _flat(queries), report)
    captions = [short_name(generator.class_names[label]) for batch in batches for label in batch.labels]
    picture = request.out / "nearest.png"
    save_png(_draw(points, made, captions, found, ratios), picture)
    report(Saved(what="nearest", path=picture))
    unit = "8-bit levels" if options.nearest == "pixels" else "standard deviations"
    facts = {
        "training images": f"{len(training)} in {training.path}" + (", and mirrored" if points.mirror else ""),
        "distance": f"RMS in {unit} of {options.nearest}; mean of the nearest {float(found.distance[:, 0].mean()):.3g}",
        "ratio": f"to the training image's own nearest: smallest {min(ratios):.2f}, "
        f"median {float(np.median(ratios)):.2f} (well below 1: copied)",
    }
    data = {
        "space": options.nearest,
        "latents": str(training.path),
        "neighbours": found.index.tolist(),
        "mirrored": found.mirrored.tolist(),
        "distances": found.distance.tolist(),
        "ratios": ratios,
    }
    return finish(request, generator, picture=picture, facts=facts, data=data)


def _neighbours_and_ratios(
    points: TrainingPoints, queries: Tensor, report: Reporter
) -> tuple[Neighbours, list[float]]:  # fmt: skip
    """The closest of each query's, and its distance to the first divided by that one's distance to its own nearest."""
    found = search(points, queries, k=min(NEIGHBOURS, len(points.folder)), task="nearest", report=report)
    firsts = found.index[:, 0].tolist()
    own = search(points, points.at(firsts), k=1, task="their own nearest", leave_out=firsts, report=report)
    pairs = zip(found.distance[:, 0].tolist(), own.distance[:, 0].tolist(), strict=True)
    return found, [d / o if o > 0 else math.inf for d, o in pairs]


def find_training_images(model: ModelFolder, given: Path | None) -> LatentFolder:
    """The folder of latents, checked against the model. Raises `UserError`."""
    spec = model.latents
    if given is None and (spec is None or not spec.folder or not Path(spec.folder).is_dir()):
        where = spec.folder if spec and spec.folder else "a place the model does not name"
        raise UserError(
            f"the latents the model was trained on were in {where}, and are not there",
            code="no-training-latents",
            remedy="--latents DIR",
        )
    folder = LatentFolder(given if given is not None else Path(spec.folder if spec else ""))
    autoencoder, config = folder.spec.autoencoder, model.config.model
    shape = [autoencoder.channels, folder.spec.resolution // autoencoder.factor]
    if shape != [config.channels, config.input_size]:
        raise UserError(
            f"{folder.path} holds latents of {shape[0]} channels and side {shape[1]}",
            code="other-latents",
            expected=f"{config.channels} channels and side {config.input_size}, as the model's",
        )
    return folder


class TrainingPoints:
    """The training images as points [m, D], in the space that distances are taken in."""

    def __init__(self, folder: LatentFolder, generator: Generator, space: Space):
        assert generator.autoencoder is not None
        assert generator.spec is not None
        self.folder, self.space, self.mirror = folder, space, folder.has_flips
        self.autoencoder: LoadedAutoencoder = generator.autoencoder
        self.normalisation, self.device = generator.spec.normalisation, generator.device
        self._kept: dict[tuple[int, bool], Tensor] = {}  # (first of a block, mirrored) → uint8 [m, 3, H, W]
        self._kept_bytes = 0

    def block(self, start: int, *, flip: bool = False) -> Tensor:
        """The points [m, D] float32 on the CPU of `BLOCK` images from `start` on (fewer at the end)."""
        indices = list(range(start, min(start + BLOCK, len(self.folder))))
        if self.space == "latents":
            return self.at(indices, flip=flip)
        images = self._kept.get((start, flip))
        if images is None:
            images = self.images(indices, [flip] * len(indices))
            if self._kept_bytes + images.nbytes <= KEPT:
                self._kept[start, flip] = images
                self._kept_bytes += images.nbytes
        return _flat(images)

    def at(self, indices: list[int], *, flip: bool = False) -> Tensor:
        """These images' points [m, D] float32, on the CPU."""
        if self.space == "pixels":
            return _flat(self.images(indices, [flip] * len(indices)))
        return _flat(standardise(self._means(indices, [flip] * len(indices)), self.normalisation))

    def images(self, indices: list[int], flips: list[bool]) -> Tensor:
        """[m, 3, H, W] uint8."""
        means = self._means(indices, flips)
        parts = [self.autoencoder.decode(part.to(self.device)).cpu() for part in means.split(DECODED_AT_ONCE)]
        return torch.cat(parts).contiguous()

    def _means(self, indices: list[int], flips: list[bool]) -> Tensor:
        return self.folder.batch(indices, flip=flips).mean


@torch.inference_mode()
def search(
    points: TrainingPoints,
    queries: Tensor,
    *,
    k: int,
    task: str,
    leave_out: list[int] | None = None,
    report: Reporter = silent,
) -> Neighbours:
    """The k training images closest to each of `queries [n, D]`, an image counted once with its mirror image.

    Args:
        task: what the progress is called.
        leave_out: for each query, a training image that does not count: itself.
    """
    total = len(points.folder)
    best = Neighbours(
        torch.full((len(queries), k), math.inf, dtype=torch.float64),
        torch.zeros((len(queries), k), dtype=torch.int64),
        torch.zeros((len(queries), k), dtype=torch.bool),
    )
    for start in range(0, total, BLOCK):
        report(Progress(task=task, done=start, total=total, unit="images"))
        indices = list(range(start, min(start + BLOCK, total)))
        distance = _distances(queries, points.block(start))
        mirrored = torch.zeros_like(distance, dtype=torch.bool)
        if points.mirror:
            other = _distances(queries, points.block(start, flip=True))
            mirrored = other < distance
            distance = torch.minimum(distance, other)
        here = torch.tensor(indices).expand(len(queries), -1)
        if leave_out is not None:
            distance = distance.masked_fill(here == torch.tensor(leave_out)[:, None], math.inf)
        best = _merge(best, Neighbours(distance, here, mirrored), k)
    report(Progress(task=task, done=total, total=total, unit="images"))
    return best


def _merge(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    distance = torch.cat([a.distance, b.distance], dim=1)
    order = distance.argsort(dim=1, stable=True)[:, :k]
    index, mirrored = torch.cat([a.index, b.index], dim=1), torch.cat([a.mirrored, b.mirrored], dim=1)
    return Neighbours(distance.gather(1, order), index.gather(1, order), mirrored.gather(1, order))


def _distances(queries: Tensor, points: Tensor) -> Tensor:
    """RMS differences [n, m] in float64. Differences are taken before squaring, so that a copy is at exactly 0."""
    rows = [(points - query).square().mean(dim=1, dtype=torch.float64).sqrt() for query in queries]
    return torch.stack(rows)


def _flat(values: Tensor) -> Tensor:
    return values.flatten(1).float()


def _draw(
    points: TrainingPoints, made: Tensor, captions: list[str], found: Neighbours, ratios: list[float]
) -> Image.Image:
    count = found.index.shape[1]
    images, labels = [], []
    for i, caption in enumerate(captions):
        numbers, flips = found.index[i].tolist(), found.mirrored[i].tolist()
        images += [made[i : i + 1], points.images(numbers, flips)]
        labels += [f"ratio {ratios[i]:.2f}, {caption}"]
        labels += [
            f"#{n}{'m' if f else ''}: {d:.2g}"
            for n, f, d in zip(numbers, flips, found.distance[i].tolist(), strict=True)
        ]
    heads = ("sample", "nearest training images: number, distance")
    return labelled_grid(torch.cat(images), labels, count + 1, heads=heads)
