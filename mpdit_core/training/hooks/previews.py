"""Draws samples every `preview.every` steps, always from the same noise and labels, so that they can be compared."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mpdit_core.data.autoencoders import LoadedAutoencoder, load_autoencoder
from mpdit_core.data.standardising import unstandardise
from mpdit_core.errors import UserError
from mpdit_core.flow.guidance import Guidance, GuidedVelocity
from mpdit_core.flow.integrate import integrate, starting_noise
from mpdit_core.model.transformer import without_values
from mpdit_core.pictures import labelled_grid, save_gif, save_png
from mpdit_core.reporting import Saved, Warning
from mpdit_core.samplers import load_sampler
from mpdit_core.training.hooks.metrics import StepMetrics
from mpdit_core.training.session import Session

WIDENING = 1.2  # factor on the columns of a square grid, because screens are wider than high


class Previews:
    """Writes a grid of samples from the first EMA, one from the weights themselves, and a GIF of the EMA's grids."""

    def __init__(self, session: Session, metrics: StepMetrics):
        self.session, self.metrics, self.preview = session, metrics, session.config.preview
        self._damaged: set[Path] = set()

    def after(self, step: int) -> None:
        """Draws the previews of `step`, where they are due; a failure is reported and does not end the run.

        All processes must call it; the main one draws.
        """
        if self.preview.every == 0 or step % self.preview.every:
            return
        self.metrics.drain()
        plan, run, spec = self.session.plan, self.session.run, self.session.plan.latents.spec
        ema, model = self.session.trainer.ema, self.session.trainer.model
        with self.session.clock.paused():
            average, weights = model.whole(ema.state()), model.whole(model.weights())
            if not self.session.world.is_main:
                return
            try:
                autoencoder = load_autoencoder(spec.autoencoder, device=self.session.device, trust=plan.trust)
                self._draw(average, autoencoder, run.preview(step))
                self.session.report(Saved(what="preview", path=run.preview(step)))
                self._draw(weights, autoencoder, run.preview(step, raw=True))
                frames = self._frames()
                if len(frames) > 1:
                    save_gif(frames, run.animation)
            except UserError as error:
                text = f"no preview at step {step}: {error.what}"
                self.session.report(Warning(code="preview-failed", text=text))

    def _frames(self) -> list[Image.Image]:
        """The previews so far; damaged ones are reported once and left out."""
        frames = []
        for path in self.session.run.previews():
            try:
                with Image.open(path, formats=["PNG"]) as picture:
                    picture.load()
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                if path not in self._damaged:
                    text = f"{path} is not in the animation: {error}"
                    self.session.report(Warning(code="damaged-preview", text=text))
                self._damaged.add(path)
            else:
                frames.append(picture)
        return frames

    @torch.no_grad()
    def _draw(self, weights: dict[str, Tensor], autoencoder: LoadedAutoencoder, path: Path) -> None:
        """Samples from the run's fixed noises [n, C, h, w], classes in turn, and writes them as a grid."""
        spec, config, device = self.session.plan.latents.spec, self.session.config.model, self.session.device
        network = without_values(config)
        network.load_state_dict(weights, assign=True)
        labels = [i % len(config.labels) for i in range(self.preview.num_images)]
        velocity_fn = GuidedVelocity(
            network.to(device).eval(),
            torch.tensor(labels, device=device),
            null_label=config.null_label,
            guidance=Guidance(scale=self.preview.guidance_scale),
            dtype=self.session.trainer.model.dtype,
        )
        noise, _ = starting_noise(config, self.session.config.train.seed, "preview", indices=range(len(labels)))
        latents = integrate(load_sampler("euler", num_steps=self.preview.num_steps), velocity_fn, noise.to(device))
        images = autoencoder.decode(unstandardise(latents, spec.normalisation)).cpu()
        columns = math.ceil(math.sqrt(len(images)) * WIDENING)
        save_png(labelled_grid(images, [spec.class_name(label) for label in labels], columns), path)
