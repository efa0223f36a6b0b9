"""What all views share: the checked request, the folder to write to, and the JSON file beside the image."""

from __future__ import annotations

from typing import Any

from PIL import Image

from mpdit_core import plugins
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import open_model
from mpdit_core.pictures import save_png
from mpdit_core.reporting import Reporter, Saved, jsonable
from mpdit_core.runtime import files
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import under_torchrun
from mpdit_core.sampling.generator import Generator
from mpdit_core.sampling.options import SampleOptions, SamplingOptions, ViewResult
from mpdit_core.sampling.sample_set import model_name, next_folder, require_empty
from mpdit_core.version import __version__

MOST = 256  # images in one view


class View:
    """A checked request for a view, with a folder to write to. The model is open, but not loaded; nothing is written.

    Args:
        default_samples: number of samples where the options do not set it.
        images_per_sample: number of images in the view per sample.
        most: largest number of images in the view.

    Raises:
        UserError: no model, several processes (`one-process`), too many images (`too-many-images`), or a folder that is
            not empty.
    """

    def __init__(
        self, options: SampleOptions, name: str, *, default_samples: int, images_per_sample: int = 1, most: int = MOST
    ):
        if under_torchrun():
            raise UserError(
                f"several processes for one {name}", code="one-process", expected="one", remedy="leave --nproc out"
            )
        self.options, self.name = options, name
        self.num_samples = options.num_samples or default_samples
        require_at_most(self.num_samples * images_per_sample, most)
        self.folder = open_model(options.model)
        self.out = options.out or next_folder(f"{model_name(options.model, self.folder)}-{name}")
        require_empty(self.out)
        self.device = select_device(options.device)

    def generator(self, options: SamplingOptions | None = None) -> Generator:
        """The loaded model with these options, or with those of the request."""
        return Generator(self.folder, options or self.options, device=self.device, num_samples=self.num_samples)

    def finish(
        self, image: Image.Image, generator: Generator, *, facts: dict[str, str], data: dict[str, Any], report: Reporter
    ) -> ViewResult:
        """Writes the image, and `data` into the JSON file beside it. `facts` describe the image in words."""
        path = self.out / f"{self.name}.png"
        save_png(image, path)
        report(Saved(what=self.name, path=path))
        about = {
            "mpdit": __version__,
            "view": self.name,
            "model": {"weights_sha256": generator.folder.weights_sha256, "step": generator.folder.step},
            "options": SamplingOptions(**self.options.sampling_values()).model_dump(mode="json"),
            "num_samples": self.num_samples,
            "sampler": plugins.record("samplers", generator.options.sampler, generator.sampler).as_json(),
        }
        data = jsonable(data)
        files.write_json(self.out / f"{self.name}.json", jsonable(about) | data)
        return ViewResult(view=self.name, out=self.out, image=path, facts=facts, data=data)


def require_at_most(count: int, most: int = MOST) -> None:
    """Raises `UserError` (`too-many-images`) for more than `most` images in one view."""
    if count > most:
        raise UserError(
            f"{count} images in one view",
            code="too-many-images",
            expected=f"up to {most}",
            remedy="a smaller --num-samples",
        )


def short_name(name: str) -> str:
    """`goldfish, Carassius auratus` → `goldfish`."""
    return name.partition(",")[0].strip()
