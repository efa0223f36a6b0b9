"""`mpdit demo`: the whole pipeline on scikit-learn's scans of digits, offline, in minutes on two CPU cores.

Every step is the job that its command runs. The demo adds a measure of success: a classifier trained on real digits has
to recognise the samples, and their Fréchet distance to real digits is compared with that of other real digits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mpdit_core import plugins
from mpdit_core.data.autoencoders import as_rgb
from mpdit_core.data.images import prepare
from mpdit_core.demo.options import DemoOptions, DemoResult
from mpdit_core.encoding import EncodeOptions, encode_latents
from mpdit_core.errors import UserError
from mpdit_core.metrics.scores import frechet_distance
from mpdit_core.metrics.statistics import statistics_of
from mpdit_core.pictures import labelled_grid, save_png
from mpdit_core.profiling import ProfileOptions, profile_flops
from mpdit_core.reporting import Note, Reporter, Saved, silent
from mpdit_core.runtime.seeding import generator
from mpdit_core.sampling import Generator, SamplingOptions
from mpdit_core.size import Size
from mpdit_core.training import TrainOptions, train

GUIDANCE = 1.5
SAMPLING = SamplingOptions(sampler="heun", num_steps=25)
GRID, GRID_COLUMNS = 80, 10  # images in the picture, and in a row of it


def demo(options: DemoOptions, *, report: Reporter = silent) -> DemoResult:
    """Runs all steps under `options.out`; a second run continues where the first ended.

    Raises:
        UserError: the package mpdit-digits is missing (`missing-package`), or as the jobs of the steps.
    """
    if "digits" not in plugins.names("datasets"):
        raise UserError(
            "the demo's data set is not installed",
            code="missing-package",
            expected="the package mpdit-digits, installed next to mpdit",
            remedy="pip install mpdit-digits",
        )
    latents, run, device = options.out / "latents" / "digits-16", options.out / "digits", options.device

    def headline(text: str, command: str) -> None:
        report(Note(text=f"\n{text}\n   On ImageNet: {command}"))

    headline(
        "1. Encode 1,797 real digits to latents (here the pixels themselves, 16 × 16)",
        "mpdit encode-latents imagenet/",
    )
    encode_latents(EncodeOptions(source="digits", out=latents, device=device), report=report)

    headline(
        "2. Train a two-stage MPDiT: 2 blocks on 16 coarse tokens, 2 blocks on 64 fine ones",
        "mpdit train --preset xl-256",
    )
    train(TrainOptions(preset="digits", latents=latents, run=run, steps=options.steps, device=device), report=report)

    headline("3. Sample the ten digits", "mpdit sample runs/xl-256-1 --guidance-scale 4")
    engine = Generator(run, SAMPLING, device=device)
    picture = options.out / "digits.png"
    images, labels = sample(engine, GRID, guidance_scale=GUIDANCE, seed=0)
    save_png(labelled_grid(images, [str(label) for label in labels], GRID_COLUMNS), picture)
    report(Saved(what="grid", path=picture))

    headline(f"4. Measure {options.samples} samples against real digits", "mpdit eval-fid runs/xl-256-1")
    recognised, distance, distance_of_real = measure(engine, samples=options.samples)

    headline("5. Count the compute", "mpdit profile-flops --resolution 512")
    cost = profile_flops(ProfileOptions(model=str(run)), report=report).models[0]
    return DemoResult(
        run=run,
        picture=picture,
        recognised=recognised,
        distance=distance,
        distance_of_real=distance_of_real,
        samples=options.samples,
        guidance_scale=GUIDANCE,
        cost=cost,
    )


def sample(engine: Generator, count: int, *, guidance_scale: float, seed: int) -> tuple[Tensor, list[int]]:
    """`count` images [n, 3, 16, 16] uint8, classes in turn, and their labels."""
    chosen = engine.changed(num_samples=count, guidance_scale=guidance_scale, seed=seed)
    batches = list(chosen.batches())
    images = torch.cat([as_rgb(batch.images) for batch in batches])
    return images, [label for batch in batches for label in batch.labels]


def measure(engine: Generator, *, samples: int) -> tuple[float, float, float]:
    """Three figures from new samples and the real digits that the model was trained on.

    Returns:
        The fraction of guided samples that a classifier recognises as the requested digit; the Fréchet distance of
        unguided samples to real digits, on pixels; and the distance of as many other real digits to them.
    """
    classifier, pixels = (plugins.build("features", name) for name in ("digits", "digits-pixels"))
    for extractor in (classifier, pixels):
        extractor.load(engine.device)
    guided, labels = sample(engine, samples, guidance_scale=GUIDANCE, seed=1)
    seen = classifier(guided.to(engine.device)).logits.argmax(dim=1).cpu()
    unguided, _ = sample(engine, samples, guidance_scale=1.0, seed=2)
    first, second = real_digits(2 * samples, seed=1).split(samples)
    real, others, made = (statistics_of(pixels(images.to(engine.device)).pool) for images in (first, second, unguided))
    recognised = (seen == torch.tensor(labels)).double().mean().item()
    return recognised, frechet_distance(real, made), frechet_distance(real, others)


def real_digits(count: int, *, seed: int) -> Tensor:
    """`count` different real digits in random order, [n, 3, 16, 16] uint8, preprocessed as in encoding."""
    digits = plugins.build("datasets", "digits")
    order = torch.randperm(len(digits.items()), generator=generator(seed, "real"))[:count]
    images = np.stack([prepare(digits.image(int(i)), Size.square(16)) for i in order])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
