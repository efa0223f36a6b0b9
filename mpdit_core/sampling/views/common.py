"""What the pictures of `mpdit sample` share that are not plain sets of samples: sweeps, trajectories, interpolations,
nearest neighbours. Each is a folder of its own with its picture and a JSON file that says what is seen.

To add one: a job in a module beside this one, that takes a `ViewRequest` and begins with `opened`; its name in
`IMAGES`; a flag in mpdit_cli/commands/sample.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpdit_core import __version__, plugins
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.reporting import Event, Result, Saved, Summary, jsonable
from mpdit_core.runtime import files
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import under_torchrun
from mpdit_core.samplers import load_sampler
from mpdit_core.sampling.generator import Generation, SampleOptions, class_names
from mpdit_core.sampling.job import model_name

IMAGES = {"samples": 16, "sweep": 9, "trajectory": 6, "interpolation": 9, "nearest": 8}
"""Images of each view where no number is asked for."""

MOST = 256  # images of one picture


@dataclass(frozen=True, kw_only=True)
class ViewRequest:
    """What every view is asked for. `out` None: `samples/<model>-<view>-<n>/`."""

    model: str
    options: SampleOptions
    out: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Opened:
    """A checked request: the model, not yet loaded, where to compute and where to write."""

    folder: ModelFolder
    device: torch.device
    out: Path
    names: list[str]  # of classes


def opened(request: ViewRequest, view: str, *, images: int | None = None) -> Opened:
    """Finds the model and a folder to write to; writes nothing yet.

    Args:
        images: how many the picture will hold; the options' num_samples by default.

    Raises:
        UserError: no model, several processes, too many images, or a folder that holds something.
    """
    if under_torchrun():
        raise UserError(f"a {view} is made by one process", remedy="start it without torchrun and without --nproc")
    count = request.options.num_samples if images is None else images
    if count > MOST:
        raise UserError(f"{count} images in one picture", expected=f"up to {MOST}", remedy="a smaller --num-samples")
    device = select_device(request.device)
    folder = open_model(request.model)
    out = request.out or _free(Path("samples"), f"{model_name(request.model, folder)}-{view}")
    with files.user_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there and not empty", expected="a new folder", remedy="another --out, or none")
    return Opened(folder, device, out, class_names(folder.latents, folder.config.model.num_classes))


def _free(root: Path, name: str) -> Path:
    pattern = re.compile(rf"{re.escape(name)}-(\d+)")
    taken = [int(m[1]) for path in root.glob("*") if (m := pattern.fullmatch(path.name))]
    return root / f"{name}-{max(taken, default=0) + 1}"


def all_images(generation: Generation) -> Tensor:
    """All images that the options ask for, [n, 3, H, W] uint8 on the CPU."""
    batches = generation.batches(range(generation.num_blocks))
    return torch.cat([batch.images for batch in batches if batch.images is not None])


def image_names(generation: Generation, names: list[str]) -> list[str]:
    """A short caption for every image: its class's first name."""
    labels = [generation.labels(i) for i in range(generation.options.num_samples)]
    return [short_name(names[label]) for label in labels]


def short_name(name: str) -> str:
    """`goldfish, Carassius auratus` → `goldfish`."""
    return name.partition(",")[0].strip()


def finish(
    place: Opened, request: ViewRequest, view: str, *, picture: Path, rows: Mapping[str, str], data: Mapping[str, Any]
) -> Iterator[Event]:
    """The JSON file beside the picture, and the last events."""
    options = request.options
    sampler = load_sampler(options.sampler, num_steps=options.num_steps, **options.sampler_options)
    about = {
        "mpdit": __version__,
        "view": view,
        "model": {"weights_sha256": place.folder.weights_sha256, "step": place.folder.step},
        "options": options.model_dump(mode="json"),
        "sampler": plugins.record("samplers", options.sampler, sampler),
    }
    files.write_json(place.out / f"{view}.json", jsonable(about | dict(data)))
    yield Saved(what=view, path=picture)
    yield Summary(title=f"{view} of {request.model}", rows={"where": str(picture), **rows})
    yield Result(data={"out": str(place.out), "grid": str(picture), **data})
