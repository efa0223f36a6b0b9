"""The folder of a set of samples: its name, its record samples.json, and its progress. No other file reads the record.

    samples.json               the options and the model; once the set is complete, its cost
    images/000012.png          --format png (with --by-class: images/<class>/000012.png)
    samples.npz                --format npz: arr_0 uint8 [N, H, W, 3], arr_1 int64 [N] labels, as ADM's evaluator reads
    latents/000003.safetensors --format latents: a block's latents [n, C, h, w], labels and indices
    grid.png                   the first images, labelled
    .progress/000003.json      marker of a finished block, written after it; all are removed with the last

If a marker cannot be read, its block is computed again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from mpdit_core.config import ComputeType, NetworkType
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.plugins import PluginRecord
from mpdit_core.runtime import files
from mpdit_core.sampling.options import ComputeTypes, Format, SamplingCost, SamplingOptions
from mpdit_core.settings import Settings, flatten, setting, settings_error
from mpdit_core.version import __version__

if TYPE_CHECKING:
    from mpdit_core.models.model_folder import ModelFolder
    from mpdit_core.sampling.generator import SampleBlock

FORMAT = 2
SAMPLES = Path("samples")
RECORD, PROGRESS = "samples.json", ".progress"
LEFTOVERS = re.compile(r"\.progress|\.lock|\.lock\.owner|\..*\.(part|old)")
"""Names of files that remain after a job was killed or its folder deleted. A folder of only these counts as empty."""

REMAINS = {"images", "latents"}
"""In a folder with `.progress`, these do not count either: they hold a block written while the set was deleted."""


class SampledModel(Settings):
    """The model that was sampled, and the types it computed in."""

    path: str = setting(..., "model folder, at the time of sampling")
    preset: str = setting(..., "preset of its configuration")
    step: int = setting(..., "training step")
    weights_sha256: str = setting(..., "SHA-256 of its weights")
    dtype: NetworkType = setting(..., "data type that the network computed in")
    decode_dtype: ComputeType | None = setting(
        None, "data type that the decoder computed in; none: latents were not decoded"
    )

    @property
    def types(self) -> ComputeTypes:
        return ComputeTypes(self.dtype, self.decode_dtype)


class SampleSet(Settings):
    """A set of samples, begun or complete. The fields that `IDENTITY` names fix its images."""

    path: Path = Field(exclude=True)
    mpdit: str = setting(__version__, "version that wrote it")
    format: Format = setting(..., "format of its files")
    by_class: bool = setting(..., "whether its PNGs are in one folder per class")
    num_samples: PositiveInt = setting(..., "number of images")
    options: SamplingOptions = setting(..., "how it was sampled, the sampler's defaults filled in")
    sampler: PluginRecord = setting(..., "the sampler with all its options")
    guide: str | None = setting(None, "SHA-256 of the weights of the guide")
    model: SampledModel = setting(..., "the model that was sampled")
    latents: LatentSpec | None = setting(None, "the latents of the model, if it describes them")
    counts: SamplingCost | None = setting(None, "its cost; none: the set is not complete")

    @property
    def complete(self) -> bool:
        return self.counts is not None

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The set in the folder `path`.

        Raises:
            UserError: there is none (`no-such-file`), or its samples.json has another version of the format
                (`unknown-format`) or is damaged (`damaged-file`).
        """
        record, remedy = Path(path) / RECORD, "sample again, into another folder"
        stored = files.read_versioned(record, "the record of a set of samples", version=FORMAT, remedy=remedy)
        try:
            return cls.model_validate_json(json.dumps({**stored["samples"], "path": str(path)}))
        except (KeyError, TypeError, ValidationError) as error:
            reason = settings_error(error).what if isinstance(error, ValidationError) else "it has no table `samples`"
            raise UserError(
                f"{record} is damaged: {reason}",
                code="damaged-file",
                expected="the record of a set of samples, as mpdit wrote it",
                remedy=remedy,
            ) from error

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """As `open`; None for a folder that is empty or does not exist.

        Raises:
            UserError: as `open`, or the folder holds other files (`folder-not-empty`).
        """
        if cls.is_at(path):
            return cls.open(path)
        if not (path / PROGRESS).is_dir() or any(p.name not in REMAINS for p in _foreign(path)):
            require_empty(path)
        return None

    def continuing(self, begun: SampleSet) -> SampleSet:
        """This set as the continuation of `begun`: in its folder, with its counts, and computed in its data types."""
        types = begun.model.types
        model = self.model.model_copy(update={"dtype": types.network, "decode_dtype": types.decoder})
        return self.model_copy(update={"path": begun.path, "counts": begun.counts, "model": model})

    def write(self) -> None:
        """Writes samples.json, and makes the folder where it is missing."""
        files.write_json(self.path / RECORD, {"format": FORMAT, "samples": self.model_dump(mode="json")})

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether the folder `path` holds a set, which may be damaged."""
        return (path / RECORD).is_file()

    def identity(self) -> dict[str, Any]:
        """The fields that `IDENTITY` names, by dotted key. A call that continues the set must have the same."""
        return flatten(self.model_dump(mode="json", include=IDENTITY))

    def require_same(self, wanted: SampleSet) -> None:
        """Raises `UserError` (`different-samples`) with every key in which `wanted` differs."""
        mine, theirs = self.identity(), wanted.identity()
        keys = [key for key in sorted(mine | theirs) if mine.get(key) != theirs.get(key)]
        if keys:
            before, now = self.sampler, wanted.sampler
            is_other_version = before.package == now.package and before.version != now.version
            reinstall = f"; or pip install '{before.package}=={before.version}' to continue" if is_other_version else ""
            listed = "; ".join(f"{key}: {_short(mine.get(key))} → {_short(theirs.get(key))}" for key in keys)
            raise UserError(
                f"{self.path} holds samples generated with different settings: {listed}",
                code="different-samples",
                expected="the same model and options, to continue them",
                remedy="another --out, or none for a new folder" + reinstall,
            )


IDENTITY: Any = {
    "format": True,
    "by_class": True,
    "num_samples": True,
    "options": SamplingOptions.model_fields.keys() - {"compile", "guide"},
    "sampler": {"package", "version", "source", "sha256"},
    "guide": True,
    "model": {"step", "weights_sha256"},
}
"""The fields that a call which continues the set must not change. Of the guide only the weights count; the path of the
model does not. `batch_size` counts, because it says which images a finished block holds; `compile` may change."""


def require_empty(path: Path) -> None:
    """Raises `UserError` (`folder-not-empty`) where `path` is a file, or a folder with more than leftovers."""
    with files.user_errors(path):
        if path.exists() and (not path.is_dir() or _foreign(path)):
            raise UserError(
                f"{path} exists and is not empty",
                code="folder-not-empty",
                expected="a new or empty folder, or a set of samples to continue",
                remedy="another --out, or none",
            )


def _foreign(folder: Path) -> list[Path]:
    """The files in `folder` that are not leftovers."""
    return [path for path in folder.iterdir() if not LEFTOVERS.fullmatch(path.name)]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


class BlockCounts(Settings):
    """The number of images in a finished block, and the cost of each."""

    images: PositiveInt
    nfe: NonNegativeInt
    passes: NonNegativeFloat
    saved: NonNegativeFloat


class BlockMarkers:
    """The markers of the finished blocks of a set, one small file each."""

    def __init__(self, out: Path):
        self.folder = out / PROGRESS

    def mark(self, block: SampleBlock) -> None:
        counts = BlockCounts(images=len(block.indices), nfe=block.nfe, passes=block.passes, saved=block.saved)
        files.write_json(self._path(block.number), counts.model_dump())

    def done(self) -> dict[int, BlockCounts]:
        """The marked blocks. Damaged markers and other files are ignored."""
        found = {}
        for path in self.folder.glob("*.json"):
            with suppress(UserError, ValueError):
                if path.stem.isdecimal() and path == self._path(block := int(path.stem)):
                    found[block] = BlockCounts.model_validate(files.read_json(path))
        return found

    def cost(self, *, images_per_second: float) -> SamplingCost:
        """The cost of the marked blocks, as means over their images."""
        blocks = self.done().values()
        count = sum(block.images for block in blocks)
        means = {key: sum(getattr(b, key) * b.images for b in blocks) / count for key in ("nfe", "passes", "saved")}
        return SamplingCost(**means, images_per_second=images_per_second)

    def keep(self, blocks: Iterable[int]) -> None:
        """Removes the markers of all other blocks."""
        for path in set(self.folder.glob("*.json")).difference(map(self._path, blocks)):
            files.remove(path)

    def count(self) -> int:
        return sum(1 for _ in self.folder.glob("*.json"))

    def remove(self) -> None:
        """Removes the folder of the markers with all that it holds."""
        files.remove(self.folder)

    def _path(self, block: int) -> Path:
        return self.folder / f"{block:06d}.json"


def model_name(where: str, folder: ModelFolder) -> str:
    """A short name for file names: `digits-1` for a run, `digits-1-step-0000400` for one of its checkpoints."""
    if where.startswith("hf:"):
        return where.removeprefix("hf:").partition("@")[0].rpartition("/")[2]
    if folder.run is not None:
        run = folder.run.resolve().name
        return run if Path(where).resolve() == folder.run.resolve() else f"{run}-{folder.path.name}"
    return folder.path.resolve().name


def newest_folder(name: str) -> Path:
    """The folder `samples/<name>-<n>` with the largest n; where there is none, n is 0."""
    return SAMPLES / f"{name}-{_newest_number(name)}"


def next_folder(name: str) -> Path:
    """The first folder `samples/<name>-<n>` that does not exist, nor any with a larger n."""
    return SAMPLES / f"{name}-{_newest_number(name) + 1}"


def _newest_number(name: str) -> int:
    pattern = re.compile(rf"{re.escape(name)}-(\d+)")
    return max((int(m[1]) for path in SAMPLES.glob("*") if (m := pattern.fullmatch(path.name))), default=0)
