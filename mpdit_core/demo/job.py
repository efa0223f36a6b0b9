"""`mpdit demo`: the whole pipeline on scikit-learn's scans of digits, offline, in minutes on two CPU cores.

Every step is the job its command runs. What the demo adds is a measure of whether it worked: a classifier fitted on
real digits has to recognise the samples, and their Fréchet distance is put beside that of real digits to themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mpdit_core import plugins
from mpdit_core.encoding.job import EncodeOptions, encode
from mpdit_core.errors import UserError
from mpdit_core.metrics.scores import frechet_distance
from mpdit_core.metrics.statistics import statistics_of
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.pictures import labelled_grid, save_png
from mpdit_core.profiling.job import ProfileOptions, profile
from mpdit_core.reporting import Event, Note, Result, Saved, Summary
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.seeding import generator
from mpdit_core.sampling.generator import SampleOptions, generate
from mpdit_core.training.job import TrainOptions, train

SAMPLES = 500  # behind each figure
GUIDANCE = 1.5
SAMPLER = {"sampler": "heun", "num_steps": 25}


@dataclass(frozen=True)
class Quality:
    """What the demo measures of its model."""

    recognised: float  # share of guided samples in which the classifier sees the digit asked for
    distance: float  # Fréchet distance of unguided samples to real digits, on pixels
    distance_of_real: float  # the same of real digits to other real digits, at the same count


def demo(*, out: Path, device_name: str, steps: int | None = None, samples: int = SAMPLES) -> Iterator[Event]:
    """Runs all steps under `out`; a second run goes on where the first ended.

    Raises:
        UserError: the package mpdit-digits is missing, or `out` cannot be written.
    """
    if "digits" not in plugins.names("datasets"):
        raise UserError(
            "the demo's data set is not installed",
            expected="the package mpdit-digits beside mpdit",
            remedy="uv pip install -e plugins/mpdit-digits",
        )
    device = select_device(device_name)
    latents, run = out / "latents" / "digits-16", out / "digits"

    yield _headline(1, "encode 1,797 real digits to latents (here the pixels themselves, 16 × 16)")
    yield _for_real("mpdit encode-latents imagenet/")
    yield from _quietly(encode(EncodeOptions(source="digits", out=latents), device=device))

    yield _headline(2, "train a two-level MPDiT: 2 blocks on 16 coarse tokens, 2 blocks on 64 fine ones")
    yield _for_real("mpdit train --preset xl-256")
    yield from _quietly(train(TrainOptions(preset="digits", latents=latents, run=run, steps=steps, device=device_name)))

    model = open_model(run)
    yield _headline(3, "sample the ten digits")
    yield _for_real("mpdit sample runs/xl-256-1 --guidance-scale 4")
    picture = out / "digits.png"
    images, labels = sample(model, device, count=80, guidance_scale=GUIDANCE, seed=0)
    save_png(labelled_grid(images, [str(label) for label in labels], 10), picture)
    yield Saved(what="grid", path=picture)

    yield _headline(4, f"measure {samples} samples against real digits")
    yield _for_real("mpdit eval-fid runs/xl-256-1")
    quality = measure(model, device, samples=samples)

    yield _headline(5, "count the compute")
    yield _for_real("mpdit profile-flops --res 512")
    yield from _quietly(profile(ProfileOptions(model=str(run))), tables=True)

    ratio = quality.distance / quality.distance_of_real
    yield Summary(
        title="the demo's model",
        rows={
            "recognised": f"{quality.recognised:.1%} of {samples} samples at guidance {GUIDANCE} (97 % is asked for)",
            "distance": f"{quality.distance:.3f} to real digits, unguided; {ratio:.2f} × that of real digits to "
            f"others ({quality.distance_of_real:.3f}; up to 4 × is asked for)",
            "picture": str(picture),
        },
        next_command=f"mpdit sample {run} --classes 7 --guidance-scale 2",
    )
    yield Result(
        data={
            "run": run,
            "picture": picture,
            "recognised": quality.recognised,
            "distance": quality.distance,
            "distance_of_real": quality.distance_of_real,
            "samples": samples,
            "guidance_scale": GUIDANCE,
        }
    )


def sample(
    model: ModelFolder, device: torch.device, *, count: int, guidance_scale: float, seed: int
) -> tuple[Tensor, list[int]]:
    """`count` images [n, 3, 16, 16] uint8, classes in turn, and their labels."""
    options = SampleOptions(num_samples=count, guidance_scale=guidance_scale, seed=seed, **SAMPLER)
    batches = list(generate(model, options, device=device, world=World()))
    images = [batch.images for batch in batches if batch.images is not None]
    return torch.cat(images), [label for batch in batches for label in batch.labels]


def measure(model: ModelFolder, device: torch.device, *, samples: int = SAMPLES, seed: int = 1) -> Quality:
    """The three figures, from fresh samples and the real digits the model was trained on."""
    classifier, pixels = (plugins.build("features", name) for name in ("digits", "digits-pixels"))
    for extractor in (classifier, pixels):
        extractor.load(device)
    guided, labels = sample(model, device, count=samples, guidance_scale=GUIDANCE, seed=seed)
    seen = classifier(guided.to(device)).logits.argmax(dim=1).cpu()
    unguided, _ = sample(model, device, count=samples, guidance_scale=1.0, seed=seed + 1)
    first, second = real_digits(2 * samples, seed=seed).split(samples)
    real, others, made = (statistics_of(pixels(images.to(device)).pool) for images in (first, second, unguided))
    return Quality(
        recognised=(seen == torch.tensor(labels)).double().mean().item(),
        distance=frechet_distance(real, made),
        distance_of_real=frechet_distance(real, others),
    )


def real_digits(count: int, *, seed: int) -> Tensor:
    """`count` different real digits in random order, [n, 3, 16, 16] uint8, preprocessed as in encoding."""
    import numpy as np

    from mpdit_core.data.images import prepare

    digits = plugins.build("datasets", "digits")
    order = torch.randperm(len(digits.items()), generator=generator(seed, "real"))[:count]
    images = np.stack([prepare(digits.image(int(i)), 16) for i in order])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _headline(number: int, text: str) -> Note:
    return Note(text=f"\n{number}. {text[:1].upper()}{text[1:]}")


def _for_real(command: str) -> Note:
    return Note(text=f"   for real: {command}")


def _quietly(events: Iterator[Event], *, tables: bool = False) -> Iterator[Event]:
    """A step's progress, pictures and tables, without its own summary and result, which would look like the end."""
    from mpdit_core.reporting import Table

    for event in events:
        if not isinstance(event, Result | Summary | Note) and (tables or not isinstance(event, Table)):
            yield event
