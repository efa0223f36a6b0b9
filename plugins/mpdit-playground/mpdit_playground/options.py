"""The options and the result of `mpdit playground`. Torch-free."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from mpdit_core.sampling.options import MODEL, SamplingOptions
from mpdit_core.settings import DeviceOptions, Result, setting


class PlaygroundOptions(SamplingOptions, DeviceOptions):
    """The models, the page, and the options of sampling that the page begins with."""

    models: tuple[str, ...] = setting(
        ..., f"{MODEL}; several to compare", argument=True, repeated=True, strict=False, metavar="MODEL…"
    )
    num_samples: PositiveInt = setting(8, "initial number of images")
    latents: Path | None = setting(
        None, "folder of training latents to search for the nearest images", metavar="DIR",
        strict=False, chosen="those that the model was trained on",
    )  # fmt: skip
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: open to the network", panel="Running")
    port: PositiveInt | None = setting(
        None, "port to listen on", le=65535, chosen="the first free port from 7860", panel="Running"
    )
    browser: bool = setting(True, "open the page in the browser", panel="Running")


class PlaygroundResult(Result):
    """The page, after it was closed."""

    url: str = setting(..., "address of the page")
