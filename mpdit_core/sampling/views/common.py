"""What all pictures share: the checked request, the folder they are written to, and the JSON file beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpdit_core import __version__, plugins
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.reporting import jsonable
from mpdit_core.runtime import files
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import under_torchrun
from mpdit_core.sampling.generator import Generator, sampling_values
from mpdit_core.sampling.naming import model_name, newest, numbered
from mpdit_core.sampling.options import SampleOptions, SamplingOptions, ViewResult
from mpdit_core.sampling.sample_set import require_empty

MOST = 256  # images of one picture


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """A checked request for a picture: the model, not yet loaded, where to compute and where to write."""

    view: str
    options: SampleOptions
    num_samples: int
    folder: ModelFolder
    device: torch.device
    out: Path

    def generator(self, options: SamplingOptions | None = None) -> Generator:
        """The loaded model, with these options or those that were asked for."""
        return Generator(self.folder, options or self.options, device=self.device, num_samples=self.num_samples)


def open_view(options: SampleOptions, view: str, *, default_samples: int, drawn_per_sample: int = 1) -> PictureRequest:
    """Finds the model and a folder to write to; writes nothing yet.

    Args:
        default_samples: number of samples where the options name none.
        drawn_per_sample: images that the picture holds for each sample.

    Raises:
        UserError: no model, several processes (`one-process`), too many images (`too-many-images`), or a folder that is
            not empty.
    """
    if under_torchrun():
        raise UserError(f"several processes for one {view}", code="one-process", remedy="leave --nproc out")
    num_samples = options.num_samples or default_samples
    require_at_most(num_samples * drawn_per_sample, MOST)
    folder = open_model(options.model)
    name = f"{model_name(options.model, folder)}-{view}"
    out = options.out or numbered(name, newest(name) + 1)
    require_empty(out)
    return PictureRequest(
        view=view,
        options=options,
        num_samples=num_samples,
        folder=folder,
        device=select_device(options.device),
        out=out,
    )


def require_at_most(count: int, most: int) -> None:
    """Raises `UserError` (`too-many-images`) for more images than one picture may hold."""
    if count > most:
        raise UserError(
            f"{count} images in one picture",
            code="too-many-images",
            expected=f"up to {most}",
            remedy="a smaller --num-samples",
        )


def short_name(name: str) -> str:
    """`goldfish, Carassius auratus` → `goldfish`."""
    return name.partition(",")[0].strip()


def finish(
    request: PictureRequest, generator: Generator, *, picture: Path, facts: Mapping[str, str], data: Mapping[str, Any]
) -> ViewResult:
    """The result, and the JSON file beside the picture that says the same."""
    about = {
        "mpdit": __version__,
        "view": request.view,
        "model": {"weights_sha256": request.folder.weights_sha256, "step": request.folder.step},
        "options": SamplingOptions(**sampling_values(request.options)).model_dump(mode="json"),
        "num_samples": request.num_samples,
        "sampler": plugins.record("samplers", generator.options.sampler, generator.sampler),
    }
    files.write_json(request.out / f"{request.view}.json", jsonable(about | dict(data)))
    return ViewResult(view=request.view, out=request.out, picture=picture, facts=dict(facts), data=jsonable(dict(data)))
