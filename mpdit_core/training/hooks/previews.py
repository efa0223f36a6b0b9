"""The pictures a run leaves on its way: always the same noise and labels, so that frames compare."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from mpdit_core.config import PreviewConfig
from mpdit_core.data.autoencoders import load_autoencoder
from mpdit_core.data.latents import unstandardise
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.flow.guidance import Guidance, GuidedVelocity
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import rebuild_positions
from mpdit_core.pictures import labelled_grid, save_gif, save_png
from mpdit_core.reporting import Event, Saved, Warn
from mpdit_core.runtime.seeding import generator
from mpdit_core.samplers import load_sampler
from mpdit_core.training.state.trainer import Trainer


def make_previews(trainer: Trainer, *, run: Path, spec: LatentSpec, preview: PreviewConfig) -> Iterator[Event]:
    """Writes `samples/step-<n>.png` (first EMA), `step-<n>-raw.png` (weights as they are), and a GIF of all frames.

    All processes must call it; rank 0 draws. What goes wrong with the pictures does not stop the run.
    """
    step = trainer.position.step
    variants = {"": trainer.model.whole(trainer.ema.state()), "-raw": trainer.model.weights()}
    if not trainer.world.is_main:
        return
    with torch.device("meta"):
        model = MPDiT(trainer.config.model)
    try:
        autoencoder = load_autoencoder(spec.autoencoder, device=trainer.device)
        for suffix, weights in variants.items():
            model.load_state_dict(weights, assign=True)
            rebuild_positions(model)
            latents, labels = sample_preview(model.to(trainer.device).eval(), trainer, preview)
            images = autoencoder.decode(unstandardise(latents, spec.normalisation)).cpu()
            path = run / "samples" / f"step-{step:07d}{suffix}.png"
            columns = math.ceil(math.sqrt(len(images)) * 1.2)
            save_png(labelled_grid(images, [spec.class_names[label] for label in labels], columns), path)
            if not suffix:
                yield Saved(what="preview", path=path)
        save_animation(run)
    except UserError as error:
        yield Warn(text=f"no preview at step {step}: {error.what}")


@torch.no_grad()
def sample_preview(model: MPDiT, trainer: Trainer, preview: PreviewConfig) -> tuple[torch.Tensor, list[int]]:
    """Latents [n, C, H, H] of the run's fixed noises, classes in turn, and their labels."""
    config = model.config
    labels = [i % config.num_classes for i in range(preview.num_images)]
    shape = (config.channels, config.input_size, config.input_size)
    seed = trainer.config.train.seed
    noise = torch.stack([torch.randn(shape, generator=generator(seed, "preview", i)) for i in range(len(labels))])
    velocity_fn = GuidedVelocity(
        model,
        torch.tensor(labels, device=trainer.device),
        null_label=config.null_label,
        guidance=Guidance(scale=preview.guidance_scale),
        autocast=trainer.model.autocast_dtype,
    )
    x_t = noise.to(trainer.device)
    for step in load_sampler("euler", num_steps=preview.num_steps).steps(velocity_fn, x_t):
        x_t = step.x_t
    return x_t, labels


def save_animation(run: Path) -> None:
    """`samples/training.gif`: all EMA frames in order of step."""
    frames = sorted(p for p in (run / "samples").glob("step-*.png") if not p.stem.endswith("-raw"))
    if len(frames) > 1:
        save_gif([Image.open(frame) for frame in frames], run / "samples" / "training.gif")
