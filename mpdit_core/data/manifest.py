"""The description of a folder of latents, and the part of it (`LatentSpec`) that every model trained on it carries.

Torch-free, so that the CLI reads it without delay. The latents themselves are read by `mpdit_core/data/latents.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from mpdit_core.errors import UserError
from mpdit_core.runtime.files import read_json, read_versioned
from mpdit_core.settings import Settings, validate
from mpdit_core.size import MAX_RESOLUTION, Size

MAX_CHANNELS = 2**12

S = TypeVar("S", bound=Settings)

PUBLISHED_MEAN = (5.81, 3.25, 0.12, -2.15)
PUBLISHED_STD = (4.17, 4.62, 3.71, 3.28)
"""The official code's constants for the SD autoencoder, measured on pixels in [0, 1] instead of [-1, 1]: only for
repeating the paper or using its checkpoints."""


class StoredForm(NamedTuple):
    """How the latents of an image are stored: `name` of the tensor [n, copies·C, h, w] in a shard, and its dtype."""

    name: str
    dtype: Literal["float16", "uint8"]
    copies: int


FORMS = {
    "mean+std": StoredForm("moments", "float16", 2),  # the posterior's mean, then its standard deviation
    "mean": StoredForm("mean", "float16", 1),  # autoencoders without a posterior
    "uint8": StoredForm("pixels", "uint8", 1),  # pixel values 0..255, exact
}
"""To add one: a row here, and its reading in `mpdit_core.data.autoencoders.read_stored`."""


class AutoencoderSpec(Settings):
    """Which autoencoder made the latents: enough to decode them, and to notice if another one is used."""

    id: str = Field(description="a plugin's name, a local folder, or ORG/NAME[:SUBFOLDER] on the Hub")
    revision: str | None = Field(default=None, description="commit of a Hub id")
    sha256: str | None = Field(default=None, description="hash of the weights; of a plugin, its fingerprint")
    package: str | None = Field(default=None, description="package whose plugin it is; none for those of mpdit")
    options: dict[str, Any] = Field(default_factory=dict, description="all options of a plugin, defaults too")
    factor: PositiveInt = Field(le=MAX_RESOLUTION, description="pixels per latent pixel along a side")
    channels: PositiveInt = Field(le=MAX_CHANNELS, description="C of the latents")
    stores: Literal["mean+std", "mean", "uint8"] = Field(default="mean+std", description="what is kept for each image")
    flip_equivariant: bool = Field(default=False, description="latents of a mirror image are the mirrored latents")
    resolution: PositiveInt | None = Field(
        default=None, le=MAX_RESOLUTION, description="the only side that it takes, in pixels; none: any that fits"
    )

    def trial_size(self, resolution: Size, at_most: int) -> Size:
        """The size of trial images: `resolution`, its sides limited to about `at_most` pixels (whole latent pixels)."""
        if self.resolution:
            return resolution
        side = max(self.factor, at_most // self.factor * self.factor)
        return Size(*(min(side, own) for own in resolution))

    @property
    def form(self) -> StoredForm:
        return FORMS[self.stores]

    @property
    def mode(self) -> Literal["L", "RGB", "RGBA"]:
        """What its images are, as Pillow names it: RGB for an autoencoder that has no option `mode`."""
        return "L" if self.id == "pixels-gray" else self.options.get("mode", "RGB")


class Normalisation(Settings):
    """`latents = (raw_latents - mean) / std`, per channel."""

    name: Literal["measured", "published", "none"]
    mean: tuple[FiniteFloat, ...] = Field(strict=False)
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] = Field(strict=False)


class LatentSpec(Settings):
    """What sampling and evaluation need to know of the training data; stored with every checkpoint."""

    resolution: Size = Field(description="height and width of the images in pixels")
    autoencoder: AutoencoderSpec
    normalisation: Normalisation
    class_names: tuple[str, ...] = Field(strict=False, description="in label order; none: images without classes")
    source: str = Field(description="source that encode-latents was given")
    count: NonNegativeInt = Field(description="images")
    folder: str = Field(default="", description="where the latents were, as an absolute path")
    fingerprint: str = Field(default="", description="of source, options and autoencoder")
    teacher: str = Field(default="", description="hash of the plan of a teacher's features stored with them")

    def class_name(self, label: int) -> str:
        """The name of a class; of the null label an empty one."""
        return self.class_names[label] if label < len(self.class_names) else ""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _require(min(self.latent_size) >= 1, f"a resolution of {self.resolution} is less than one latent pixel")
        lengths = {len(self.normalisation.mean), len(self.normalisation.std)}
        _require(lengths == {self.autoencoder.channels}, "normalisation: not one mean and std for each channel")
        return self

    @property
    def latent_size(self) -> Size:
        return self.resolution // self.autoencoder.factor


FORMAT = 4
"""Version of the files that describe a folder of latents, and of its shards; any other version is refused."""

MANIFEST = "manifest.json"
PROJECTION = "teacher-projection.safetensors"

ENCODE_AGAIN = "encode the source again into another folder"


class SourceSpec(Settings):
    """Where the images came from."""

    given: str = Field(description="folder or archive (absolute), hf:ORG/NAME, or a data set's name")
    split: str | None = Field(default=None, description="part of the data set, if one was requested")
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of `open_source`")
    fingerprint: str = Field(description="hash of names, sizes and times of the files, or the data set's own")
    items: PositiveInt = Field(description="images before any was skipped")


class EncodingPlan(Settings):
    """Everything that determines the bytes of the shards. Encoding resumes only under the plan it began with."""

    format: int = FORMAT
    source: SourceSpec
    resolution: Size = Field(description="height and width of the images in pixels")
    autoencoder: AutoencoderSpec
    precision: Literal["float32", "tf32", "bfloat16"] = Field(default="float32", description="of the encoder")
    flip: bool = Field(description="the latents of mirror images are stored too")
    batch_size: PositiveInt = Field(description="images that are encoded at once; batches never cross a shard")
    shard_size: PositiveInt = Field(description="items that a shard covers")
    class_names: tuple[str, ...] = Field(strict=False, description="in label order; none: images without classes")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        factor = self.autoencoder.factor
        _require(self.resolution.is_multiple(factor), f"resolution {self.resolution} is not a multiple of {factor}")
        return self

    @property
    def last_label(self) -> int:
        """The largest label. Images without classes have label 0, the null label of an unconditional model."""
        return max(len(self.class_names) - 1, 0)

    @property
    def num_shards(self) -> int:
        return -(-self.source.items // self.shard_size)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First item of `shard` and the one after its last."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.source.items)

    def count_items(self, shards: Iterable[int]) -> int:
        """How many items of the source `shards` cover."""
        return sum(stop - start for start, stop in map(self.shard_range, shards))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, h, w]."""
        height, width = self.resolution // self.autoencoder.factor
        return self.autoencoder.channels, height, width

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """[copies·C, h, w]: what a shard holds for each image, see `FORMS`."""
        channels, height, width = self.latent_shape
        return self.autoencoder.form.copies * channels, height, width

    @property
    def dtype(self) -> Literal["float16", "uint8"]:
        return self.autoencoder.form.dtype

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the tensors of latents in a shard: of the images and, if they are stored, of the mirror images."""
        name = self.autoencoder.form.name
        return (name, f"{name}_flipped") if self.flip else (name,)

    @property
    def bytes_per_image(self) -> int:
        return math.prod(self.stored_shape) * (1 if self.dtype == "uint8" else 2) * len(self.tensor_names)

    def fingerprint(self) -> str:
        """Hash of the plan, which identifies the latents. It covers what the source holds, not where it lies."""
        values = self.model_dump(mode="json")
        values["source"].pop("given")
        for path in ("classes", "labels"):  # their content is in the class names and the source's fingerprint
            values["source"]["options"].pop(path, None)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


class SkippedItem(Settings):
    """An image that could not be read under `--on-error skip`."""

    key: str
    reason: str


class Shard(Settings):
    """One file of latents and labels."""

    file: str = Field(pattern=r"^shard-\d{5,}\.safetensors$")  # a plain name, so never a path out of the folder
    start: NonNegativeInt = Field(description="first item of the source it covers")
    stop: PositiveInt = Field(description="the item after its last")
    count: NonNegativeInt = Field(description="images in it: stop - start, less the skipped ones")
    bytes: PositiveInt
    sha256: str
    skipped: tuple[SkippedItem, ...] = Field(default=(), strict=False)
    sum_mean: tuple[FiniteFloat, ...] = Field(strict=False, description="per channel, over images, flips and pixels")
    sum_square: tuple[FiniteFloat, ...] = Field(
        strict=False, description="of mean² + std², the second moment of a draw"
    )

    def fault(self, number: int, plan: EncodingPlan) -> str | None:
        """Why this cannot be the record of shard `number` under `plan`; None if it can."""
        start, stop = plan.shard_range(number)
        if (self.file, self.start, self.stop) != (shard_name(number), start, stop):
            return f"shard {number} is {self.file} of items {self.start} to {self.stop}, not {start} to {stop}"
        if self.count + len(self.skipped) != stop - start:
            return f"{self.file} counts {self.count} images and {len(self.skipped)} skipped ones of {stop - start}"
        if {len(self.sum_mean), len(self.sum_square)} != {plan.autoencoder.channels}:
            return f"{self.file}: not one sum for each channel"
        return None


class TeacherPlan(Settings):
    """Everything that determines the bytes of a teacher's features, apart from the plan of the latents beside them."""

    dtype: ClassVar[Literal["float16"]] = "float16"

    format: int = FORMAT
    name: str = Field(description="a feature extractor's name, or `latents`: the latents themselves")
    package: str | None = Field(default=None, description="package whose plugin it is; none for `latents` and files")
    options: dict[str, Any] = Field(default_factory=dict, description="all options of the plugin, defaults too")
    fingerprint: str = Field(description="the plugin's: of weights and preprocessing")
    grid: Size = Field(description="tokens along the height and the width")
    features: PositiveInt = Field(description="F, numbers stored for each token")
    projection: str | None = Field(default=None, description=f"SHA-256 of {PROJECTION}, if features are projected")
    flip: bool = Field(description="the features of mirror images are stored too")

    @property
    def stored_shape(self) -> tuple[int, int]:
        """[N, F]: what is stored for each image, tokens row by row."""
        return self.grid.area, self.features

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the tensors in a shard: of the images and, if they are stored, of the mirror images."""
        return ("features", "features_flipped") if self.flip else ("features",)

    @property
    def bytes_per_image(self) -> int:
        return math.prod(self.stored_shape) * 2 * len(self.tensor_names)

    def hash(self) -> str:
        """Hash of the whole plan, which a run that learns from these features records."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:32]


class FeatureShard(Settings):
    """One file of a teacher's features: those of the images in the shard of latents with the same number."""

    file: str = Field(pattern=r"^teacher-\d{5,}\.safetensors$")
    count: NonNegativeInt = Field(description="images in it")
    bytes: PositiveInt
    sha256: str


class TeacherFeatures(Settings):
    """The features that are stored beside the latents."""

    plan: TeacherPlan
    shards: tuple[FeatureShard, ...] = Field(strict=False)


class Manifest(Settings):
    """The table of contents of a folder of latents. It is written last: where it is, the folder is complete."""

    format: int = FORMAT
    plan: EncodingPlan
    count: PositiveInt = Field(description="images, without flips and skipped ones")
    measured_mean: tuple[FiniteFloat, ...] = Field(strict=False, description="of draws from the posterior, per channel")
    measured_std: tuple[FiniteFloat, ...] = Field(strict=False, description="of draws from the posterior, per channel")
    normalisation: Normalisation
    shards: tuple[Shard, ...] = Field(strict=False)
    made_by: str = Field(default="", description="version of mpdit")
    teacher: TeacherFeatures | None = Field(default=None, description="features stored with the latents")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _require(len(self.shards) == self.plan.num_shards, f"{len(self.shards)} shards, not {self.plan.num_shards}")
        for number, shard in enumerate(self.shards):
            fault = shard.fault(number, self.plan)
            _require(fault is None, fault or "")
        there = sum(shard.count for shard in self.shards)
        _require(self.count == there, f"count is {self.count}, but the shards hold {there} images")
        norm = self.normalisation
        lengths = {len(values) for values in (self.measured_mean, self.measured_std, norm.mean, norm.std)}
        _require(lengths == {self.plan.autoencoder.channels}, "not one mean and std for each channel")
        if self.teacher is not None:
            expected = [(feature_shard_name(number), shard.count) for number, shard in enumerate(self.shards)]
            stored = [(shard.file, shard.count) for shard in self.teacher.shards]
            _require(stored == expected, "teacher: its files do not match the shards")
        return self

    @property
    def skipped(self) -> tuple[SkippedItem, ...]:
        return tuple(item for shard in self.shards for item in shard.skipped)


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def feature_shard_name(shard: int) -> str:
    return f"teacher-{shard:05d}.safetensors"


def measured_statistics(plan: EncodingPlan, shards: Sequence[Shard]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of latents drawn from the posterior, from the shards' sums.

    The variance of a draw is Var(mean) + E[std²]. Summed in shard order, so the same for any number of processes.
    """
    channels, height, width = plan.latent_shape
    pixels = sum(shard.count for shard in shards) * height * width * len(plan.tensor_names)
    means, stds = [], []
    for c in range(channels):
        mean = math.fsum(shard.sum_mean[c] for shard in shards) / pixels
        square = math.fsum(shard.sum_square[c] for shard in shards) / pixels
        means.append(mean)
        stds.append(math.sqrt(max(square - mean**2, 0.0)))
    return tuple(means), tuple(stds)


def normalisation_of(
    name: Literal["measured", "published"], mean: Sequence[float], std: Sequence[float]
) -> Normalisation:
    """The `measured` normalisation from statistics, or the `published` constants. A constant channel is not scaled.

    Raises:
        UserError: as `require_published`.
    """
    if name == "published":
        require_published(len(mean))
        return Normalisation(name="published", mean=PUBLISHED_MEAN, std=PUBLISHED_STD)
    return Normalisation(name="measured", mean=tuple(mean), std=tuple(s if s > 0 else 1.0 for s in std))


def require_published(channels: int) -> None:
    """Raises `UserError` (`normalisation-does-not-fit`) where the published constants are of another number of
    `channels`."""
    if channels != len(PUBLISHED_MEAN):
        raise UserError(
            f"the published normalisation does not apply to latents of {channels} channels",
            code="normalisation-does-not-fit",
            expected="the 4 channels of the Stable Diffusion autoencoder, whose constants are published",
            remedy="--normalisation measured",
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished folder of latents.

    Raises:
        UserError: there is no such folder or it holds no latents (`no-latents`), its encoding is unfinished
            (`unfinished-latents`), or as `read_record`.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        if (folder / "encoding").is_dir():
            raise UserError(
                f"the latents in {folder} are not complete",
                code="unfinished-latents",
                remedy="run the same `mpdit encode-latents` command again; it resumes where it stopped",
            )
        raise UserError(
            f"{folder} holds no latents" if folder.is_dir() else f"{folder} does not exist",
            code="no-latents",
            expected=f"a folder with a {MANIFEST}, made by `mpdit encode-latents`",
            remedy="mpdit encode-latents SOURCE",
        )
    return read_record(Manifest, folder / MANIFEST)


def find_latents(root: Path | str = "latents", *, resolution: Size | None = None) -> Path:
    """The one finished folder under `root` with latents of `resolution` pixels; of any, if it is not given.

    Raises:
        UserError: there is none (`no-latents`), there is more than one (`ambiguous-latents`), or none can be read (as
            `read_manifest`).
    """
    root, found, unreadable = Path(root), {}, []
    for path in sorted(root.glob(f"*/{MANIFEST}")):
        try:
            found[path.parent] = read_manifest(path.parent).plan
        except UserError as error:
            unreadable.append(error)
    fitting = [path for path, plan in found.items() if resolution in (None, plan.resolution)]
    if len(fitting) == 1:
        return fitting[0]
    wanted = f" of {resolution} px" if resolution else ""
    others = ", ".join(f"{path} ({plan.resolution} px)" for path, plan in found.items())
    unfinished = [str(path.parent) for path in sorted(root.glob("*/encoding")) if path.parent not in found]
    if fitting:
        raise UserError(
            f"{len(fitting)} folders under {root}/ hold latents{wanted}: {', '.join(map(str, fitting))}",
            code="ambiguous-latents",
            expected="one",
            remedy=f"--latents {fitting[0]}",
        )
    if unreadable:
        raise unreadable[0]
    if unfinished:
        remedy = f"{unfinished[0]} is unfinished: run its `mpdit encode-latents` command again"
    else:
        remedy = "mpdit encode-latents SOURCE" + (f" --resolution {resolution}" if resolution else "")
    raise UserError(
        f"there are no latents{wanted} under {root}/",
        code="no-latents",
        expected=f"a folder made by `mpdit encode-latents`; found: {others or 'none'}",
        remedy=f"{remedy}, or --latents DIR",
    )


def read_record(kind: type[S], path: Path) -> S:
    """A `kind` from a JSON file of a folder of latents.

    Raises:
        UserError: another format than `FORMAT`, if a `kind` has one (`unknown-format`), or anything else that mpdit
            does not write there (`damaged-file`).
    """
    if "format" in kind.model_fields:
        values = read_versioned(path, "a record of latents", version=FORMAT, remedy=ENCODE_AGAIN)
    else:
        values = read_json(path)
    try:
        return validate(kind, values)
    except UserError as error:
        raise UserError(
            f"{path} is damaged: {error.what.partition(': ')[2][:400]}",
            code="damaged-file",
            expected="a file as mpdit wrote it",
            remedy=f"restore it, or {ENCODE_AGAIN}",
        ) from error


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def latent_spec(manifest: Manifest, folder: Path) -> LatentSpec:
    """The part of `manifest` that a model trained on these latents carries with it."""
    plan = manifest.plan
    return LatentSpec(
        resolution=plan.resolution,
        autoencoder=plan.autoencoder,
        normalisation=manifest.normalisation,
        class_names=plan.class_names,
        source=plan.source.given,
        count=manifest.count,
        folder=str(Path(folder).absolute()),
        fingerprint=plan.fingerprint(),
        teacher=manifest.teacher.plan.hash() if manifest.teacher else "",
    )
