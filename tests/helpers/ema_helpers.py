"""A run with snapshots of EMAs, whose weights vary around fixed values, and its exact averages of several widths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from sample_helpers import spec
from torch import Tensor

from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.ema_snapshots import write_snapshot
from mpdit_core.models.model_folder import save_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import load_preset
from mpdit_core.training.state.ema import EMA, PowerAverage

STEPS, EVERY = 32, 2
TRACKED, OTHERS = (0.05, 0.1), (0.07, 0.15)
SCATTER = 0.1  # standard deviation of each weight over the steps


@dataclass(frozen=True)
class RunWithSnapshots:
    """`exact`: the averages of `TRACKED` and `OTHERS` after the last step, in float32."""

    path: Path
    exact: dict[float, dict[str, Tensor]]


def run_with_snapshots(folder: Path) -> RunWithSnapshots:
    """A run of the preset `tiny` that tracked two widths; one checkpoint, of its last step."""
    config = load_preset("tiny")
    config = config.model_copy(update={"train": config.train.model_copy(update={"ema_widths": TRACKED})})
    run = RunFolder(folder)
    run.write(config, spec())
    source = torch.Generator().manual_seed(0)
    network = MPDiT(config.model)
    widths = (*TRACKED, *OTHERS)
    with torch.no_grad():
        fixed = [torch.randn(p.shape, generator=source) * 0.1 for p in network.parameters()]
        ema = EMA(network, [PowerAverage(width) for width in widths])
        for step in range(1, STEPS + 1):
            for parameter, mean in zip(network.parameters(), fixed, strict=True):
                parameter.copy_(mean + SCATTER * torch.randn(mean.shape, generator=source))
            ema.update(step - 1)
            if step % EVERY == 0:
                write_snapshot(run.ema_snapshot(step), {w: ema.state(i) for i, w in enumerate(TRACKED)})
    save_model(run.checkpoint(STEPS), dict(network.named_parameters()), config=config, latents=spec(), step=STEPS)
    return RunWithSnapshots(folder, {width: ema.state(i) for i, width in enumerate(widths)})


def joined(state: dict[str, Tensor]) -> Tensor:
    """All values of a state as one vector."""
    return torch.cat([state[name].flatten() for name in sorted(state)])
