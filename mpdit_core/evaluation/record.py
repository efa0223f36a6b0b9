"""The record of an evaluation, one JSON file: the metrics, and everything that they depend on.

`Conditions` holds everything that is fixed before measuring; its hash is in the file name. `EvaluationRecord` adds the
results.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.errors import UserError
from mpdit_core.plugins import PluginRecord
from mpdit_core.reporting import Reporter, Warning, jsonable, silent
from mpdit_core.runtime.files import read_versioned, write_json
from mpdit_core.sampling import SamplingOptions
from mpdit_core.settings import Result, Settings, setting, settings_error, spelling_of

FORMAT = 3
"""Version of the record's file. Other versions are refused."""

SAMPLING_OPTIONS = [name for name, info in SamplingOptions.model_fields.items() if spelling_of(info).sweepable]
"""Options that `--sweep` may vary: all but `batch_size` and `compile`, which change the rounding only."""

Value = float | tuple[float, float] | None


class ExtractorRecord(Settings):
    """The extractor of the features."""

    plugin: PluginRecord = setting(..., "the extractor")
    published: bool | None = setting(None, "whether Inception had the published weights; none: another network")
    fingerprint: str = setting(..., "hash of weights and preprocessing")
    weights: str = setting("", "file of the weights")
    weights_sha256: str = setting("", "SHA-256 of that file")
    resize: str = setting("", "rule by which images are resized")


class ModelRecord(Settings):
    """The model that made the images."""

    path: str | None = setting(None, "its folder")
    weights_sha256: str = setting(..., "SHA-256 of its weights")
    step: int = setting(0, "training step")
    preset: str | None = setting(None, "preset of its configuration")
    autoencoder: AutoencoderSpec | None = setting(None, "autoencoder that decoded its latents")


class SamplingRecord(Settings):
    """How the images were sampled."""

    options: SamplingOptions = setting(..., "the options, the sampler's defaults filled in")
    sampler: PluginRecord = setting(..., "the sampler with all its options")
    guide: str | None = setting(None, "SHA-256 of the weights of the guide")
    dtype: str | None = setting(None, "data type that the network computed in")
    nfe: float | None = setting(None, "network evaluations per image that the sampler asked for")
    passes: float | None = setting(None, "passes of an image through a network")

    def values(self) -> dict[str, Any]:
        return {name: getattr(self.options, name) for name in SAMPLING_OPTIONS}


class ImagesRecord(Settings):
    """Images that were measured, not sampled."""

    kind: str = setting(..., "form in which they are stored")
    path: str = setting(..., "where they are")
    sha256: str = setting("", "fingerprint of their content")
    resize: str = setting("none", "rule by which they were resized")
    order: str = setting("", "their order")


class ReferenceRecord(ImagesRecord):
    """The real images, or their statistics, that samples were compared with."""

    count: int | None = setting(None, "number of images; none: stored statistics that do not state it")
    rows: int = setting(0, "number of images whose features were kept, for precision and recall")
    extractor: str = setting("", "fingerprint of the extractor")


class RulesRecord(Settings):
    """The rules by which metrics are computed."""

    distances: str = setting(..., "data type of the distances for precision and recall")
    neighbours: int = setting(..., "k of precision and recall")
    is_chunk: int = setting(..., "images per chunk of the Inception Score")
    bootstrap: int = setting(0, "replicates for the error bar of the distance")
    colours: str = setting(
        "RGB; grey in all three, transparency laid on white",
        "mode that images are converted to",
    )
    order: str = setting("by index of the images; Inception Score in contiguous chunks", "order of the images")


class RecordedWarning(Settings):
    """A warning about the metrics."""

    code: str
    text: str


class Conditions(Settings):
    """Everything that is fixed before measuring."""

    format: Literal[3] = setting(FORMAT, "version of the record")
    what: str = setting(..., "what was evaluated, as it was given")
    count: int = setting(..., "number of images")
    is_fid: bool = setting(..., "whether the metrics may be compared with published ones")
    keys: dict[str, str] = setting(..., "requested metrics → their keys in `metrics`")
    labels: dict[str, str] = setting(..., "keys in `metrics` → names to show")
    extractor: ExtractorRecord
    rules: RulesRecord
    samples: ImagesRecord | None = setting(None, "the finished images; none: they are sampled for the evaluation")
    model: ModelRecord | None = setting(None, "the model, if it is known")
    sampling: SamplingRecord | None = setting(None, "how the images were sampled, if that is known")
    device: str = setting(..., "type of the device")
    versions: dict[str, str | None] = setting(..., "versions of the packages involved")

    def file_name(self, *more: Any) -> str:
        """A file name that changes with the conditions and with `more`. It begins with a letter or a digit."""
        text = json.dumps([jsonable(self.model_dump(mode="json")), *more], sort_keys=True, default=str)
        features = re.sub(r"[^\w.-]+", "-", self.extractor.plugin.name)[-60:].strip("._-")
        return f"{features}-{self.count}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"


class EvaluationRecord(Conditions, Result):
    """The metrics of one evaluation, and how they were computed."""

    metrics: dict[str, Value] = setting(..., "the values; `KEY_std`, `KEY_bias` and `KEY_interval` belong to KEY")
    reference: ReferenceRecord
    warnings: tuple[RecordedWarning, ...] = setting((), "warnings about the metrics", strict=False)
    seconds: float = setting(..., "duration of the measurement")
    path: Path = Field(default=Path(), description="file of the record; not stored in it")

    @model_validator(mode="after")
    def _has_all_metrics(self) -> Self:
        """Refuses a record that lacks the key of a metric. The value may be None."""
        missing = {*self.keys.values(), *self.labels} - self.metrics.keys()
        if missing:
            raise ValueError(f"metrics lacks {', '.join(sorted(missing))}")
        return self

    @property
    def step(self) -> int:
        """Training step of the model; 0 where there is none."""
        return self.model.step if self.model else 0

    @property
    def distance(self) -> str | None:
        """Key of the Fréchet distance in `metrics`, if it was asked for."""
        return self.keys.get("fid")

    def value(self, metric: str) -> Value:
        """The value of `metric`, such as `fid`, whatever its key is; None where it was not measured."""
        return self.metrics.get(self.keys.get(metric, ""))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file.

        Raises:
            UserError: there is no such file (`no-such-file`), or it is not a record (`damaged-file`) or one of another
                version (`unknown-format`).
        """
        path = Path(path)
        kind, remedy = "the record of an evaluation", "delete it and evaluate again"
        values = read_versioned(path, kind, version=FORMAT, remedy=remedy)
        try:
            return cls.model_validate_json(json.dumps(values | {"path": str(path)}))
        except ValidationError as error:
            raise settings_error(error, origin=str(path)) from None

    def write(self, path: Path) -> Self:
        """Writes the record and returns it with its `path`. Raises `UserError` where it cannot be written."""
        write_json(path, jsonable(self.model_dump(mode="json", exclude={"path"})))
        return self.model_copy(update={"path": Path(path)})


def read_records(folder: Path, *, report: Reporter = silent) -> list[EvaluationRecord]:
    """All records in `folder`, in order of the model's step. Damaged ones are left out, with a warning."""
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        if is_sweep(path):
            continue
        try:
            found.append(EvaluationRecord.read(path))
        except UserError as error:
            report(Warning(code="damaged-record", text=f"left out: {error.what}"))
    return sorted(found, key=lambda record: record.step)


def is_sweep(path: Path) -> bool:
    """Whether `path` is the table of a sweep, which is in the same folder as the records."""
    return path.name.startswith("sweep-")
