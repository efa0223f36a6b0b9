"""New plugin packages: `mpdit plugins new sampler NAME` writes one that installs and passes its own test as written.

To change what is written: the templates below. `@NAME@`, `@MODULE@` and `@CLASS@` are filled in.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from mpdit_core.errors import UserError
from mpdit_core.plugins.contracts import KINDS
from mpdit_core.plugins.finding import names
from mpdit_core.runtime.files import writing_folder

KIND_OF = {contract.table: kind for kind, contract in KINDS.items()}

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "mpdit-@NAME@"
version = "0.1.0"
description = "@WHAT@ for mpdit"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["mpdit"@MORE@]

[project.entry-points."mpdit.@GROUP@"]
@NAME@ = "@MODULE@:@CLASS@"

[tool.setuptools]
py-modules = ["@MODULE@"]
"""

README = """\
# mpdit-@NAME@

@WHAT@ for mpdit.

    pip install -e .
    mpdit plugins show @NAME@
    @TRY@

Its test holds it to mpdit's contract: `python -m pytest`.
"""

SAMPLER = '''\
"""The sampler `@NAME@`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mpdit_core.api import NoiseSource, Step, VelocityFn, option


@dataclass
class @CLASS@:
    """Heun's method on equal steps. (Replace it with your own.)"""

    order: ClassVar[int] = 2  # claimed; the test measures it
    stochastic: ClassVar[bool] = False

    num_steps: int = option(50, "number of intervals between t = 1 and t = 0", minimum=1)

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        x_t, h = noise, -1 / self.num_steps  # t falls from 1, noise, to 0, data
        for n in range(self.num_steps):
            t = 1 - n / self.num_steps
            v = velocity_fn(x_t, t)
            v_next = velocity_fn(x_t + h * v, t + h)
            x_t = x_t + h * (v + v_next) / 2
            yield Step(1 - (n + 1) / self.num_steps, x_t)  # the last step must have t == 0
'''

SAMPLER_TEST = """\
from @MODULE@ import @CLASS@

from mpdit_core.testing import check_sampler


def test_keeps_the_contract():
    report = check_sampler(@CLASS@)
    assert report.nfe == 40  # 2 evaluations per step, 20 steps
"""

DATASET = '''\
"""The data set `@NAME@`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from PIL import Image, ImageDraw

from mpdit_core.api import Item, option


@dataclass
class @CLASS@:
    """Drawn discs and squares of many sizes. (Replace them with your own pictures.)"""

    count: int = option(200, "number of pictures", minimum=2)
    side: int = option(64, "side of a picture in pixels", minimum=16)

    def class_names(self) -> list[str]:
        return ["disc", "square"]

    def items(self) -> list[Item]:
        return [Item(f"@NAME@/{index:05d}", label=index % 2) for index in range(self.count)]

    def image(self, index: int) -> Image.Image:
        picture = Image.new("RGB", (self.side, self.side), "black")
        margin = 2 + index * 7 % (self.side // 4)
        box = (margin, margin, self.side - margin, self.side - margin)
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if index % 2 == 0 else draw.rectangle)(box, fill=(255, 40 + index * 37 % 200, 90))
        return picture

    def fingerprint(self) -> str:  # must change whenever the pictures or labels do
        return hashlib.sha256(f"@NAME@ 1 {self.count} {self.side}".encode()).hexdigest()
'''

DATASET_TEST = """\
from @MODULE@ import @CLASS@

from mpdit_core.testing import check_dataset


def test_keeps_the_contract():
    check_dataset(@CLASS@(count=20))
"""

FEATURES = '''\
"""The feature extractor `@NAME@`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mpdit_core.api import Features, option


@dataclass
class @CLASS@:
    """Mean colours of a grid of cells. (Replace them with your network's features.)"""

    name: ClassVar[str] = "@NAME@"

    cells: int = option(4, "number of cells along a side", minimum=1)

    def load(self, device: torch.device) -> None:  # a network: read its weights here; raise UserError if there are none
        pass

    def __call__(self, images: Tensor) -> Features:
        cells = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, self.cells)  # [B, 3, cells, cells]
        return Features(pool=cells.flatten(1))

    def fingerprint(self) -> str:  # must change with weights and preprocessing
        return f"@NAME@ 1 {self.cells}"
'''

FEATURES_TEST = """\
from @MODULE@ import @CLASS@

from mpdit_core.testing import check_features


def test_keeps_the_contract():
    check_features(@CLASS@())
"""

# kind: (what it is, more requirements, code, test, a command to try it)
TEMPLATES = {
    "sampler": ("A sampler", "", SAMPLER, SAMPLER_TEST, "mpdit sample runs/digits-1 --sampler @NAME@"),
    "dataset": ("A data set", ', "pillow"', DATASET, DATASET_TEST, "mpdit encode-latents @NAME@ --resolution 64"),
    "features": ("Features", "", FEATURES, FEATURES_TEST, "mpdit eval-fid runs/digits-1 --features @NAME@"),
}


def new_package(kind: str, name: str, *, folder: Path | None = None) -> Path:
    """Writes a package for a `sampler`, `dataset` or `features` called `name` into `folder` (default `./mpdit-NAME`).

    Raises:
        UserError: unknown kind, an impossible name, a name that is taken, or a folder that exists.
    """
    if kind not in TEMPLATES:
        raise UserError(
            f"there is no kind of plugin called {kind!r}", code="no-such-kind", expected=", ".join(TEMPLATES)
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(
            f"{name!r} cannot be the name of a plugin",
            code="invalid-value",
            expected="like my-sampler: a-z, 0-9 and hyphens",
        )
    if name in names(KIND_OF[kind]):
        raise UserError(
            f"a {kind} called {name!r} is installed already", code="name-in-use", remedy="choose another name"
        )
    folder = folder or Path(f"mpdit-{name}")
    if folder.exists():
        raise UserError(f"{folder} exists already", code="folder-in-use", remedy="choose another name, or --out FOLDER")
    _write(folder, TEMPLATES[kind], group=KIND_OF[kind], name=name)
    return folder


def _write(folder: Path, template: tuple[str, str, str, str, str], *, group: str, name: str) -> None:
    module = "mpdit_" + name.replace("-", "_")
    what, more, code, test, command = template
    values = {
        "@WHAT@": what, "@MORE@": more, "@TRY@": command, "@GROUP@": group, "@NAME@": name, "@MODULE@": module,
        "@CLASS@": "".join(part.capitalize() for part in name.split("-")),
    }  # fmt: skip
    files = {"pyproject.toml": PYPROJECT, "README.md": README, f"{module}.py": code, f"tests/test_{module}.py": test}
    with writing_folder(folder) as temporary:
        for path, text in files.items():
            for mark, value in values.items():
                text = text.replace(mark, value)
            (temporary / path).parent.mkdir(exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
