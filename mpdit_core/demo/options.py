"""The options and the result of `mpdit demo`. Torch-free."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from mpdit_core.profiling import ModelCost
from mpdit_core.settings import DeviceOptions, Result, setting


class DemoOptions(DeviceOptions):
    """The folder and the length of the demo."""

    out: Path = setting(Path("demo"), "folder of the demo", metavar="DIR", panel="Output", strict=False)
    steps: PositiveInt | None = setting(None, "number of training steps; fewer for a faster demo", chosen="1200")
    samples: PositiveInt = setting(500, "number of samples per metric", typed=False)


class DemoResult(Result):
    """The demo's model and its figures."""

    run: Path = setting(..., "the run")
    picture: Path = setting(..., "grid of samples")
    recognised: float = setting(..., "fraction of guided samples that a classifier recognises as the requested digit")
    distance: float = setting(..., "Fréchet distance of unguided samples to real digits, on pixels")
    distance_of_real: float = setting(..., "Fréchet distance of other real digits to real digits, on pixels")
    samples: int = setting(..., "number of samples per metric")
    guidance_scale: float = setting(..., "guidance scale of the classified samples")
    cost: ModelCost = setting(..., "MACs of the model")
