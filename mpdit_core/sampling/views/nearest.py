"""`mpdit sample --nearest latents|pixels`: beside each sample the training images closest to it.

A copied sample is closer to a training image than any other training image is. So each distance is shown with its ratio
to the distance between that image and its own nearest training image. A ratio well below 1 suggests a copy.

Training images are streamed from the folder of latents, with their mirror images where the folder has them. In latents,
the distance is the root mean square of the difference of standardised latents (posterior means); in pixels, of decoded
images in RGB, in 8-bit levels. The first pass over the training images finds the neighbours of the samples, the second
the neighbours of those. Decoded images are kept for the second, up to `KEPT` bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mpdit_core.data.autoencoders import LoadedAutoencoder, as_rgb
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.standardising import standardise
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import ModelFolder
from mpdit_core.pictures import labelled_grid
from mpdit_core.reporting import Progress, Reporter, Warning, silent
from mpdit_core.sampling.generator import Generator
from mpdit_core.sampling.options import SampleOptions, ViewResult
from mpdit_core.sampling.views.common import View, short_name

Space = Literal["latents", "pixels"]
NEIGHBOURS = 4
DEFAULT_SAMPLES = 8
AT_ONCE = 512  # training images at once
KEPT = 2 * 2**30  # bytes of decoded images


class Neighbours(NamedTuple):
    """The images closest to each query, best first: `distance` float64, `indices`, `mirrored` bool, all [n, k]."""

    distance: Tensor
    indices: Tensor
    mirrored: Tensor


def nearest(options: SampleOptions, *, report: Reporter = silent) -> ViewResult:
    """Writes nearest.png: per sample a row with it and its neighbours, with their numbers and distances.

    Raises:
        UserError: as `Generator`; the training latents are missing (`no-training-latents`), have another shape
            (`other-latents`) or are of one image (`too-few-images`).
    """
    assert options.nearest is not None
    view = View(options, "nearest", default_samples=DEFAULT_SAMPLES, images_per_sample=NEIGHBOURS + 1)
    training = find_training_images(view.folder, options.latents)
    if len(training) < 2:  # the distance to its own nearest image would be infinite
        raise UserError(
            f"{training.path} holds the latents of one image", code="too-few-images", expected="two images or more"
        )
    if view.folder.latents and training.spec.fingerprint != view.folder.latents.fingerprint:
        text = f"the latents in {training.path} differ from those that the model was trained on"
        report(Warning(code="other-latents", text=text))
    generator = view.generator()
    batches = list(generator.batches())
    made = torch.cat([as_rgb(batch.images) for batch in batches])
    queries = made if options.nearest == "pixels" else torch.cat([batch.latents for batch in batches])
    points = TrainingPoints(training, generator, options.nearest)
    found = search(points, queries.flatten(1).float(), k=min(NEIGHBOURS, len(training)), task="nearest", report=report)
    firsts = found.indices[:, 0].tolist()
    own = search(points, points.at(firsts), k=1, task="their own nearest", leave_out=firsts, report=report)
    pairs = zip(found.distance[:, 0].tolist(), own.distance[:, 0].tolist(), strict=True)
    ratios = [distance / of_its_own if of_its_own > 0 else math.inf for distance, of_its_own in pairs]
    names = [short_name(generator.class_names[label]) for batch in batches for label in batch.labels]
    captions = [f", {name}" if name else "" for name in names]
    grid = _grid(points, made, [f"ratio {r:.2f}{c}" for r, c in zip(ratios, captions, strict=True)], found)
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
        "neighbours": found.indices.tolist(),
        "mirrored": found.mirrored.tolist(),
        "distances": found.distance.tolist(),
        "ratios": ratios,
    }
    return view.finish(grid, generator, facts=facts, data=data, report=report)


def find_training_images(model: ModelFolder, given: Path | None) -> LatentFolder:
    """The folder of training latents: `given`, or the one that the model names, if it fits. Raises `UserError`."""
    recorded = model.latents.folder if model.latents else None
    if given is None and recorded and Path(recorded).is_dir():
        given = Path(recorded)
    if given is None:
        raise UserError(
            f"the training latents of the model are not at {recorded}"
            if recorded
            else "the model does not name its training latents",
            code="no-training-latents",
            expected="a folder of latents",
            remedy="--latents DIR",
        )
    folder = LatentFolder(given)
    autoencoder, config = folder.spec.autoencoder, model.config.model
    channels, size = autoencoder.channels, folder.spec.latent_size
    if (channels, size) != (config.channels, config.input_size):
        raise UserError(
            f"{folder.path} holds latents of {channels} channels and size {size}",
            code="other-latents",
            expected=f"{config.channels} channels and size {config.input_size}, as the model's",
            remedy="choose another --latents",
        )
    return folder


class TrainingPoints:
    """The training images as points [m, D] of the space in which distances are measured."""

    def __init__(self, folder: LatentFolder, generator: Generator, space: Space):
        assert generator.autoencoder is not None
        assert generator.spec is not None
        self.folder, self.space, self.mirror = folder, space, folder.has_flips
        self.autoencoder: LoadedAutoencoder = generator.autoencoder
        self.normalisation = generator.spec.normalisation
        self._kept: dict[tuple[int, ...], Tensor] = {}  # (*indices, flip) → uint8 [m, 3, H, W]

    def at(self, indices: list[int], *, flip: bool = False) -> Tensor:
        """The points [m, D] of these images, float32 on the CPU."""
        flips = [flip] * len(indices)
        if self.space == "latents":
            return standardise(self.folder.batch(indices, flip=flips).mean, self.normalisation).flatten(1).float()
        key = (*indices, flip)
        images = self._kept.get(key)
        if images is None:
            images = self.images(indices, flips)
            if images.nbytes + sum(kept.nbytes for kept in self._kept.values()) <= KEPT:
                self._kept[key] = images
        return images.flatten(1).float()

    def images(self, indices: list[int], flips: list[bool]) -> Tensor:
        """These images, [m, 3, H, W] uint8 on the CPU."""
        means = self.folder.batch(indices, flip=flips).mean
        return as_rgb(self.autoencoder.decode(means).cpu()).contiguous()


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
    """The k training images closest to each of `queries [n, D]`. An image and its mirror image count once.

    Args:
        task: name of the progress.
        leave_out: for each query, the training image that it is itself, which does not count.
    """
    count, total = len(queries), len(points.folder)
    best = [torch.empty(count, 0, dtype=kind) for kind in (torch.float64, torch.int64, torch.bool)]
    for start in range(0, total, AT_ONCE):
        report(Progress(task=task, done=start, total=total, unit="images"))
        indices = list(range(start, min(start + AT_ONCE, total)))
        distance = _distances(queries, points.at(indices))
        mirrored = torch.zeros_like(distance, dtype=torch.bool)
        if points.mirror:
            other = _distances(queries, points.at(indices, flip=True))
            mirrored = other < distance
            distance = torch.minimum(distance, other)
        index = torch.tensor(indices).expand(count, -1)
        if leave_out is not None:
            distance = distance.masked_fill(index == torch.tensor(leave_out)[:, None], math.inf)
        so_far = [torch.cat(both, dim=1) for both in zip(best, (distance, index, mirrored), strict=True)]
        order = so_far[0].argsort(dim=1, stable=True)[:, :k]
        best = [values.gather(1, order) for values in so_far]
    report(Progress(task=task, done=total, total=total, unit="images"))
    return Neighbours(*best)


def _distances(queries: Tensor, points: Tensor) -> Tensor:
    """RMS differences [n, m] in float64. Differences are taken before squaring, so that a copy is at exactly 0."""
    return torch.stack([(points - query).square().mean(dim=1, dtype=torch.float64).sqrt() for query in queries])


def _grid(points: TrainingPoints, made: Tensor, captions: list[str], found: Neighbours) -> Image.Image:
    """A row per sample: the sample with its caption, then its neighbours with number and distance."""
    images, labels = [], []
    for sample, caption, *row in zip(made, captions, *(values.tolist() for values in found), strict=True):
        distances, numbers, flips = row
        images += [sample[None], points.images(numbers, flips)]
        labels += [caption]
        labels += [f"#{n}{'m' if f else ''}: {d:.2g}" for n, f, d in zip(numbers, flips, distances, strict=True)]
    heads = ("sample", "nearest training images: number, distance")
    return labelled_grid(torch.cat(images), labels, found.indices.shape[1] + 1, heads=heads)
