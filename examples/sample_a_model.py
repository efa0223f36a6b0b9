"""Images from a model in Python: `python examples/sample_a_model.py demo/digits`.

The model is a run, a checkpoint, an exported folder or `hf:ORG/NAME`. Writes image.png, grid.png and trajectory.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mpdit_core import Generator, load_sampler
from mpdit_core.api import Step
from mpdit_core.flow.guidance import Guidance, GuidedVelocity
from mpdit_core.flow.integrate import integrate
from mpdit_core.pictures import labelled_grid, save_png


def main(model: str, *, num_steps: int = 25) -> None:
    generator = Generator(model)

    # In short: PIL images.
    images = generator.images(num_samples=8, guidance_scale=2.0, num_steps=num_steps)
    images[0].save("image.png")

    # The same in parts that you can change. t runs from 1 (noise) to 0 (data).
    network, config = generator.network, generator.network.config
    labels = torch.arange(8) % len(config.labels)
    velocity = GuidedVelocity(network, labels, null_label=config.null_label, guidance=Guidance(scale=2.0))
    noise = torch.randn(8, config.channels, *config.input_size, generator=torch.Generator().manual_seed(0))
    states: list[torch.Tensor] = []

    def keep(step: Step) -> None:
        states.append(step.x_t[:1])

    with torch.no_grad():
        latents = integrate(load_sampler("heun", num_steps=num_steps), velocity, noise, on_step=keep)  # [B, C, h, w]
    print(f"{velocity.nfe} evaluations, {velocity.passes:g} passes of each image through the network")

    save_png(labelled_grid(generator.decode(latents), [str(int(label)) for label in labels], 4), Path("grid.png"))
    shown = states[:: max(1, num_steps // 8)]
    save_png(labelled_grid(generator.decode(torch.cat(shown)), [""] * len(shown), len(shown)), Path("trajectory.png"))


if __name__ == "__main__":
    main(sys.argv[1])
