"""Loss bands: the losses of recorded runs during training, and which other runs may be compared with them.

A run is compared with runs of the same network, loss, times of training and latents. Differences in optimisation are
allowed, and listed.

To add one: `python benchmarks/loss_band.py` with three runs or more, which writes a file into bands/.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from mpdit_core.config import RESUMABLE, RunConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.runtime.files import read_json
from mpdit_core.settings import Settings, changes, setting, validate

BANDS = Path(__file__).parent / "bands"
MARGIN = 3  # standard deviations to either side of the mean
WITHOUT_EFFECT = {
    "train.seed",
    "train.ema_decays",
    "train.ema_warmup",
    "train.ema_widths",
}  # on the loss, except by chance


class LossBand(Settings):
    """The losses of several runs that differ in their seeds only, averaged over windows of equal length."""

    what: str = setting(..., "what was trained, in a few words")
    date: str = setting(..., "when it was recorded")
    hardware: str = setting(..., "device that the runs were made on")
    command: str = setting(..., "command line that made them")
    config: RunConfig = setting(..., "configuration of the first run")
    latents: LatentSpec = setting(..., "latents that they were trained on")
    runs: PositiveInt = setting(..., "number of runs")
    images_seen: tuple[PositiveInt, ...] = setting(..., "end of each window, in images", strict=False)
    loss: tuple[PositiveFloat, ...] = setting(..., "mean over the runs in each window", strict=False)
    deviation: PositiveFloat = setting(
        ..., "standard deviation between runs as a share of the loss, root mean square over the windows"
    )
    logged: PositiveInt = setting(..., "losses that each run logged per window")

    def limits(self, window: int) -> tuple[float, float]:
        """The lowest and the highest loss in the band, in that window."""
        room = MARGIN * self.deviation
        return self.loss[window] * max(0.0, 1 - room), self.loss[window] * (1 + room)

    def accepts(self, config: RunConfig, latents: LatentSpec) -> bool:
        """Whether a run is of the same network, loss, times of training and latents.

        Latents are the same as far as classes, number and statistics tell. Folders and times of files are not compared:
        they differ where the same pictures were fetched twice.
        """
        a, b = self.latents, latents
        of_a, of_b = a.normalisation, b.normalisation
        return (
            all(getattr(self.config, part) == getattr(config, part) for part in ("model", "objective", "time"))
            and (a.resolution, len(a.class_names)) == (b.resolution, len(b.class_names))
            and (a.autoencoder.id, a.autoencoder.options) == (b.autoencoder.id, b.autoencoder.options)
            and len(of_a.std) == len(of_b.std)
            and math.isclose(a.count, b.count, rel_tol=0.05)
            and all(math.isclose(x, y, rel_tol=0.02) for x, y in zip(of_a.std, of_b.std, strict=True))
            and all(abs(x - y) < 0.02 * std for x, y, std in zip(of_a.mean, of_b.mean, of_a.std, strict=True))
        )

    def differences(self, config: RunConfig) -> dict[str, tuple[Any, Any]]:
        """What differs in the optimisation, by key: the value of the recorded runs, and that of `config`.

        The number of steps is such a difference where the learning rate depends on it.
        """
        without = RESUMABLE | WITHOUT_EFFECT
        if self.config.train.schedule == "constant":
            without |= {"train.decay_steps"}
        else:
            without -= {"train.steps", "train.epochs"}
        found = changes(self.config, config)
        return {key: values for key, values in found.items() if key.startswith("train.") and key not in without}


def windowed(losses: Sequence[tuple[float, float]], ends: Sequence[float]) -> list[list[float]]:
    """The losses in each window, which lasts from the end of the one before to its own.

    Args:
        losses: (images seen, loss), in order.
    """
    return [[loss for seen, loss in losses if start < seen <= end] for start, end in pairwise([0, *ends])]


@cache
def recorded_bands() -> tuple[LossBand, ...]:
    return tuple(validate(LossBand, read_json(path), origin=str(path)) for path in sorted(BANDS.glob("*.json")))


def band_for(config: RunConfig, latents: LatentSpec) -> LossBand | None:
    """The band that a run is compared with, of several the one whose optimisation is most like the run's."""
    possible = [band for band in recorded_bands() if band.accepts(config, latents)]
    return min(possible, key=lambda band: len(band.differences(config)), default=None)
