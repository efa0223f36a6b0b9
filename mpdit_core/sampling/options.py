"""What sampling is asked for, and what it returns. `sample` and `eval-fid` share `SamplingOptions`. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import PositiveInt

from mpdit_core.config import Compile, ComputeType, EmaWidth, GuidanceName, GuidanceSchedule, NetworkType, Precision
from mpdit_core.reporting import Warning
from mpdit_core.settings import DeviceOptions, Options, Result, setting

Format = Literal["png", "npz", "latents"]
VIEW_OPTIONS = ("sweep", "trajectory", "interpolate", "nearest")
"""Options that each ask for a view in place of a set of samples."""

MODEL = "run, checkpoint folder, exported model or hf:ORG/NAME"


sampling_option = partial(setting, panel="Sampling", sweepable=True)


class ComputeTypes(NamedTuple):
    """The data types that images are computed in."""

    network: NetworkType
    decoder: ComputeType | None  # None: they are not decoded


class SamplingOptions(Options):
    """Everything that an image depends on, besides the model and the number of the image.

    With another `batch_size` or `compile` only the rounding differs.
    """

    classes: str | tuple[str | int, ...] = sampling_option(
        "all",
        'classes to sample: all (balanced), random, or ids and names: 207,"golden retriever" '
        "(id:10 or name:10 where a number is the name of another class)",
    )
    guidance_scale: float = sampling_option(1.0, "guidance scale; 1: off", ge=0)
    num_steps: PositiveInt | None = sampling_option(
        None, "number of steps (intervals of time)", chosen="depends on the sampler, usually 50"
    )
    sampler: str = sampling_option("euler", "name of the sampler (`mpdit plugins` lists them)")
    sampler_options: dict[str, Any] = sampling_option(
        {}, "other options of the sampler, such as its grid", table="sampler", typed=False
    )
    seed: int = sampling_option(0, "seed of the noise and of random classes", ge=0)
    guidance: GuidanceName = sampling_option("cfg", "rule of guidance")
    guidance_options: dict[str, Any] = sampling_option(
        {}, "options of the rule of guidance, such as eta of apg", table="guidance", typed=False
    )
    guidance_interval: tuple[float, float] = sampling_option(
        (0.0, 1.0), "times t (1: noise, 0: data) between which guidance is on", strict=False, metavar="LO,HI"
    )
    guidance_schedule: GuidanceSchedule = sampling_option("constant", "change of the guidance scale with t")
    guide: str | None = sampling_option(
        None, "weaker model that gives the weak velocity (autoguidance)", metavar="MODEL"
    )
    ema_width: EmaWidth | None = sampling_option(
        None,
        "width (sigma_rel) of the EMA of the weights, made from a run's snapshots (train.ema_widths)",
        chosen="the run's first EMA",
    )
    ema_step: PositiveInt | None = sampling_option(
        None,
        "step of the run at which the EMA of --ema-width ends",
        chosen="last snapshot up to the checkpoint",
    )
    batch_size: PositiveInt = setting(32, "number of images computed at once", panel="Running")
    precision: Precision = setting(
        "auto",
        "data type to compute in; auto: bfloat16 if it is faster in a measurement",
        panel="Running",
        sweepable=True,
    )
    compile: Compile = setting(
        "auto", "whether the network is compiled (torch.compile); graphs: also recorded as a CUDA graph; "
        "auto: on GPUs recorded, and compiled for many images",
        panel="Running",
    )  # fmt: skip

    def sampling_values(self) -> dict[str, Any]:
        """The values of the fields of `SamplingOptions` alone, without those that a subclass adds."""
        return {name: getattr(self, name) for name in SamplingOptions.model_fields}


class SampleOptions(SamplingOptions, DeviceOptions):
    """What `mpdit sample` is asked for: a set of samples, or one of the views below."""

    model: str = setting(..., MODEL, argument=True, metavar="MODEL")
    num_samples: PositiveInt | None = setting(None, "number of images to sample", chosen="16; fewer in a view")
    out: Path | None = setting(
        None, "folder of the samples", metavar="DIR", panel="Output", chosen="samples/MODEL-N", strict=False
    )
    format: Format = setting("png", "format of the files to write", panel="Output")
    by_class: bool = setting(False, "write PNGs into one folder per class", panel="Output")
    sweep: tuple[str, ...] = setting(
        (), "view of the same noise with several values of an option; given twice: of two options; "
        "`;` separates values that contain commas",
        strict=False, repeated=True, metavar="KEY=V1,V2,…", panel="Views",
    )  # fmt: skip
    trajectory: bool = setting(False, "view and GIF of x_t and of the data predicted from it, over t", panel="Views")
    interpolate: tuple[int, int] | None = setting(
        None, "view of images from A to B, whose noises are interpolated",
        strict=False, metavar="A,B", panel="Views", chosen="none",
    )  # fmt: skip
    nearest: Literal["latents", "pixels"] | None = setting(
        None, "view of each sample beside its nearest training images, by distance in latents or in pixels",
        panel="Views", chosen="none",
    )  # fmt: skip
    latents: Path | None = setting(
        None, "folder of training latents for --nearest",
        metavar="DIR", panel="Views", chosen="those that the model was trained on", strict=False,
    )  # fmt: skip

    @property
    def views(self) -> list[str]:
        """Which of `VIEW_OPTIONS` are asked for; none: a set of samples."""
        return [name for name in VIEW_OPTIONS if getattr(self, name)]


def options_without_effect(options: SamplingOptions, *, sweep: tuple[str, ...] = ()) -> list[Warning]:
    """Warnings about options that, given the others, change no image. `sweep`: options that vary, as `KEY=V1,V2`."""
    swept = [text.partition("=")[0].strip().replace("-", "_") for text in sweep]
    found = []
    if options.guidance_scale == 1 and "guidance_scale" not in swept:
        names = ("guidance", "guidance_options", "guidance_interval", "guidance_schedule", "guide")
        found += warn_if_given(options, names, "guidance_scale is 1, which is off")
    if options.ema_width is None and "ema_width" not in swept:
        found += warn_if_given(options, ["ema_step"], "ema_width is not given")
    return found


def warn_if_given(options: Options, names: Iterable[str], why: str) -> list[Warning]:
    """One warning (`option-without-effect`) about the options among `names` that were given; none where none was."""
    fields = type(options).model_fields
    given = [name for name in names if getattr(options, name) != fields[name].get_default(call_default_factory=True)]
    text = f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect: {why}"
    return [Warning(code="option-without-effect", text=text)] if given else []


class SamplingCost(Result):
    """The cost of a set of samples, as means over its images."""

    nfe: float = setting(..., "network evaluations per image that the sampler asked for")
    passes: float = setting(..., "passes of an image through a network; a guided evaluation takes two with most rules")
    saved: float = setting(0, "passes saved by a guidance interval and zero velocities")
    images_per_second: float | None = setting(None, "rate of the last session")


class SampleResult(SamplingCost):
    """A finished set of samples."""

    out: Path = setting(..., "folder of the set")
    samples: Path = setting(..., "the images, the npz or the latents in it")
    grid: Path | None = setting(None, "grid of the first samples, with their labels")
    images: int = setting(..., "number of images")
    step: int = setting(..., "training step of the model")
    sampler: dict[str, Any] = setting(..., "the sampler, its package and all its options")
    precision: str = setting(..., "data type that the network computed in")
    decode_precision: str | None = setting(None, "data type that the decoder computed in")


class ViewResult(Result):
    """One image that shows samples side by side, and what it shows."""

    view: str = setting(..., "which view: sweep, trajectory, interpolation or nearest")
    out: Path = setting(..., "folder of the view")
    image: Path = setting(..., "the image")
    facts: dict[str, str] = setting(..., "facts of the view, as text")
    data: dict[str, Any] = setting(..., "facts of the view, as numbers")
