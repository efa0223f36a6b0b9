"""Finds the training images closest to a sample, by the distance of latents."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mpdit_core.pictures import tile
from mpdit_core.sampling import Generator, TrainingPoints, find_training_images, search

NEIGHBOURS = 4


@torch.inference_mode()
def nearest(generator: Generator, latent: Tensor, *, latents: Path | None) -> list[tuple[Image.Image, str]]:
    """The closest training images, closest first, each with its number and distance.

    Args:
        latent: [C, h, w], standardised.
        latents: the folder of training latents, by default where it was during training.

    Raises:
        UserError: the latents are missing (`no-training-latents`) or have another shape (`other-latents`).
    """
    training = find_training_images(generator.folder, latents)
    points = TrainingPoints(training, generator, "latents")
    found = search(points, latent[None].flatten(1).float(), k=min(NEIGHBOURS, len(training)), task="nearest")
    numbers, flips = found.indices[0].tolist(), found.mirrored[0].tolist()
    images = points.images(numbers, flips)
    distances = found.distance[0].tolist()
    return [
        (tile(image), f"#{number}{' mirrored' if flip else ''}, distance {distance:.3g}")
        for image, number, flip, distance in zip(images, numbers, flips, distances, strict=True)
    ]
