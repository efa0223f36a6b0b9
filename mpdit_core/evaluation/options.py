"""What `eval-fid` is asked for, and what `--make-reference` returns. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from pydantic import PositiveInt

from mpdit_core.sampling.options import MODEL, SamplingOptions
from mpdit_core.settings import DeviceOptions, Result, setting
from mpdit_core.size import Size


class Metric(NamedTuple):
    """A metric: its names, what it needs, and the function that computes it."""

    label: str  # with the published Inception weights
    other_key: str  # in the record, and
    other_label: str  # for people, with other features
    compute: str  # `module:function`; the function takes a `MetricInputs`
    needs_rows: bool = False  # whether it needs the features of single images


VALUES = "mpdit_core.evaluation.metric_values"
METRICS = {
    "fid":       Metric("FID", "frechet_distance", "Fréchet distance", f"{VALUES}:fid"),
    "sfid":      Metric("sFID", "spatial_frechet_distance", "spatial Fréchet distance", f"{VALUES}:sfid"),
    "is":        Metric("Inception Score", "class_score", "class score", f"{VALUES}:inception_score"),
    "precision": Metric("precision", "precision", "precision", f"{VALUES}:precision", needs_rows=True),
    "recall":    Metric("recall", "recall", "recall", f"{VALUES}:recall", needs_rows=True),
    "kid":       Metric("KID", "kernel_distance", "kernel distance", f"{VALUES}:kid", needs_rows=True),
}  # fmt: skip
"""To add one: a row, and its function in metric_values.py or in another file."""

if TYPE_CHECKING:
    MetricName: TypeAlias = str
else:
    MetricName = Literal[tuple(METRICS)]


class EvaluateOptions(SamplingOptions, DeviceOptions):
    """What to measure, and the reference. `SamplingOptions` say how images of a model are sampled."""

    what: str | None = setting(
        None,
        f"{MODEL}; or a folder, .npz or .safetensors of finished samples; or a folder of latents",
        argument=True,
        metavar="WHAT",
    )
    num_samples: PositiveInt | None = setting(
        None, "number of images to evaluate", panel="Measuring",
        chosen="50,000, or all in WHAT",
    )  # fmt: skip
    reference: str | None = setting(
        None, "real images to compare with: ADM's .npz, folder of images, latents folder or data set",
        panel="Measuring", chosen="the model's training images",
    )  # fmt: skip
    metrics: tuple[MetricName, ...] = setting(
        ("fid", "sfid", "is", "precision", "recall"), f"metrics to compute, of {','.join(METRICS)}",
        panel="Measuring", strict=False, min_length=1,
    )  # fmt: skip
    features: str = setting(
        "inception", "feature extractor: inception, or a plugin (whose distance is not called FID)",
        panel="Measuring",
    )  # fmt: skip
    feature_options: dict[str, Any] = setting({}, "options of the feature extractor", table="features", typed=False)
    weights: Path | None = setting(
        None, "file with the Inception weights", metavar="FILE", panel="Measuring",
        strict=False, chosen="torch's cache, otherwise a download",
    )  # fmt: skip
    half_distances: bool = setting(
        False, "use float16 distances for precision and recall, as ADM's evaluator does", panel="Measuring"
    )
    bootstrap: int = setting(0, "bootstrap replicates for the error bar of the distance", ge=0, panel="Measuring")
    sweep: tuple[str, ...] = setting(
        (), "evaluate every combination of these values, such as guidance_scale=1,1.5,2; "
        "`;` separates values that contain commas",
        strict=False, repeated=True, metavar="KEY=V1,V2,…", panel="Measuring",
    )  # fmt: skip
    force: bool = setting(False, "measure again, even if there is a record", panel="Measuring")
    out: Path | None = setting(
        None, "folder of the record", metavar="DIR", panel="Output", strict=False, chosen="evals/ of the run"
    )
    trust: bool = setting(False, "run code that a model or latents refer to, such as file.py:Class", panel="Running")
    keep_samples: bool = setting(False, "keep the sampled images", panel="Output")
    make_reference: Path | None = setting(
        None, "reference in ADM's format to write from WHAT, without an evaluation", metavar="OUT.npz",
        panel="Other work", strict=False, chosen="none",
    )  # fmt: skip
    resolution: Size | None = setting(
        None, "size in pixels of a reference made from a folder or data set",
        panel="Other work", chosen="as in the latents",
    )  # fmt: skip


class ReferenceResult(Result):
    """A reference file that was written."""

    path: Path = setting(..., "the file")
    count: int = setting(..., "number of images in its statistics")
    features: str = setting(..., "name of the feature extractor")
