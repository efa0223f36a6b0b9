"""What `mpdit demo` is asked for, and what it returns. Torch-free."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from mpdit_core.profiling import ModelCost
from mpdit_core.runtime.options import DeviceOptions
from mpdit_core.settings import Result, setting


class DemoOptions(DeviceOptions):
    """Where the demo writes, and how long it trains."""

    out: Path = setting(Path("demo"), "folder of the demo", metavar="DIR", panel="Output", strict=False)
    steps: PositiveInt | None = setting(None, "number of training steps; fewer for a faster demo", chosen="1200")
    samples: PositiveInt = setting(500, "number of samples per metric", typed=False)


class DemoResult(Result):
    """The demo's model, and what was measured of it."""

    run: Path = setting(..., "the run")
    picture: Path = setting(..., "grid of samples")
    recognised: float = setting(..., "fraction of guided samples that a classifier recognises as the requested digit")
    distance: float = setting(..., "Fréchet distance of unguided samples to real digits, on pixels")
    distance_of_real: float = setting(..., "the same between other real digits and real digits")
    samples: int = setting(..., "number of samples per metric")
    guidance_scale: float = setting(..., "guidance scale of the classified samples")
    cost: ModelCost = setting(..., "MACs of the model")
