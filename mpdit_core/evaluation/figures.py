"""The figures: how they are computed from samples and reference, and what each may be called.

Only Inception with the published weights gives what papers call FID, sFID and so on. Figures of other Inception weights
or of other features have other keys in the record and other labels, so that no program can take one for the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mpdit_core.evaluation.options import EvaluateOptions
from mpdit_core.evaluation.record import Value
from mpdit_core.evaluation.reference import Reference
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.neighbours import NEIGHBOURS, precision_recall
from mpdit_core.metrics.scores import bootstrap_std, frechet_distance, kernel_distance

FEW = 10_000  # samples below which the bias of the Fréchet distance is worth a warning
NORMAL_95 = 1.96  # standard deviations to either side that hold 95 % of a normal distribution

Values = dict[str, Value]

Kind = Literal["published", "unpublished", "other"]
"""The extractor: Inception with the published weights, Inception with others, or a plugin."""

NAMES = {
    # metric      key of other features        label, published    label, other features
    "fid":       ("frechet_distance",         "FID",              "Fréchet distance"),
    "sfid":      ("spatial_frechet_distance", "sFID",             "spatial Fréchet distance"),
    "is":        ("class_score",              "Inception Score",  "class score"),
    "precision": ("precision",                "precision",        "precision"),
    "recall":    ("recall",                   "recall",           "recall"),
    "kid":       ("kernel_distance",          "KID",              "kernel distance"),
}  # fmt: skip
ALWAYS = ("precision", "recall")  # metrics whose key is the same in all features


@dataclass(frozen=True)
class Naming:
    """Keys and labels of the metrics for one extractor."""

    kind: Kind
    features: str

    def key(self, metric: str) -> str:
        """The metric's key in the record: `fid` → `fid`, `unpublished_fid` or `frechet_distance`."""
        if self.kind == "published" or metric in ALWAYS:
            return metric
        return f"unpublished_{metric}" if self.kind == "unpublished" else NAMES[metric][0]

    def label(self, metric: str) -> str:
        """The metric's name for people."""
        _, published, other = NAMES[metric]
        if self.kind == "published":
            return published
        return f"{published} (unpublished weights)" if self.kind == "unpublished" else f"{other} ({self.features})"

    def keys(self, metrics: Sequence[str]) -> dict[str, str]:
        """Metric → its key."""
        return {metric: self.key(metric) for metric in metrics}

    def labels(self, metrics: Sequence[str]) -> dict[str, str]:
        """Key → the metric's name for people."""
        return {self.key(metric): self.label(metric) for metric in metrics}


def compute_metrics(
    options: EvaluateOptions, reference: Reference, samples: FeatureAccumulator, keys: Mapping[str, str]
) -> Values:
    """The values of `options.metrics` under their `keys`; None for those that features or reference do not offer.

    What belongs to a metric, such as its standard deviation, stands under the same key with `_std`, `_bias` or
    `_interval` behind it.
    """
    wanted = set(options.metrics)
    values: Values = {}
    if "fid" in wanted:
        values |= _frechet_distance(options, reference, samples)
    if "sfid" in wanted:
        values["sfid"] = _spatial_distance(reference, samples)
    if "is" in wanted:
        values["is"], values["is_std"] = samples.inception_score() or (None, None)
    if wanted & {"precision", "recall"}:
        both = zip(("precision", "recall"), _precision_recall(options, reference, samples), strict=True)
        values |= {metric: value for metric, value in both if metric in wanted}
    if "kid" in wanted:
        pair = kernel_distance(reference.rows, samples.kept_rows()) if reference.rows is not None else (None, None)
        values["kid"], values["kid_std"] = pair
    return {_key(name, keys): value for name, value in values.items()}


def needs_rows(options: EvaluateOptions) -> bool:
    """Whether the metrics need the features of single images, and not their sums alone."""
    return bool({"precision", "recall", "kid"} & set(options.metrics)) or options.bootstrap > 0


def _key(name: str, keys: Mapping[str, str]) -> str:
    metric, _, suffix = name.partition("_")
    return f"{keys[metric]}_{suffix}" if suffix else keys[metric]


def _frechet_distance(options: EvaluateOptions, reference: Reference, samples: FeatureAccumulator) -> Values:
    pool, rows = samples.gaussian(), samples.kept_rows()
    own = rows if len(rows) == pool.count else None
    theirs = reference.rows if reference.rows is not None and len(reference.rows) == reference.pool.count else None
    distance = frechet_distance(reference.pool, pool, rows_a=theirs, rows_b=own)
    values: Values = {"fid": distance}
    if pool.count < FEW:
        halves = [frechet_distance(reference.pool, half) for half in samples.half_gaussians()]
        values["fid_bias"] = sum(halves) / len(halves) - distance if halves else None
    if options.bootstrap > 1 and own is not None:
        deviation = bootstrap_std(reference.pool, own, replicates=options.bootstrap)
        margin = NORMAL_95 * deviation
        values |= {"fid_std": deviation, "fid_interval": (distance - margin, distance + margin)}
    return values


def _spatial_distance(reference: Reference, samples: FeatureAccumulator) -> float | None:
    spatial = samples.spatial_gaussian()
    if spatial is None or reference.spatial is None:
        return None
    return frechet_distance(reference.spatial, spatial)


def _precision_recall(
    options: EvaluateOptions, reference: Reference, samples: FeatureAccumulator
) -> tuple[float, float] | tuple[None, None]:
    rows = samples.kept_rows()
    if reference.rows is None or min(len(reference.rows), len(rows)) <= NEIGHBOURS:
        return None, None
    device = samples.device
    return precision_recall(reference.rows.to(device), rows.to(device), half=options.half_distances)
