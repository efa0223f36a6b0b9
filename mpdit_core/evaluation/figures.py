"""The figures: how they are computed from samples and reference, and what each may be called.

Only Inception with the published weights gives what papers call FID, sFID and so on. Figures of other Inception weights
or of other features have other keys in the record and other labels, so that no program can take one for the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from mpdit_core.evaluation.options import METRICS, EvaluateOptions
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


@dataclass(frozen=True)
class Naming:
    """Keys and labels of the metrics for one extractor."""

    kind: Kind
    features: str

    def key(self, metric: str) -> str:
        """The metric's key in the record: `fid` → `fid`, `unpublished_fid` or `frechet_distance`."""
        if self.kind == "published" or METRICS[metric].other_key == metric:
            return metric
        return f"unpublished_{metric}" if self.kind == "unpublished" else METRICS[metric].other_key

    def label(self, metric: str) -> str:
        """The metric's name for people."""
        row = METRICS[metric]
        if self.kind == "published":
            return row.label
        if self.kind == "unpublished":
            return f"{row.label} (unpublished weights)"
        return f"{row.other_label} ({self.features})"

    def keys(self, metrics: Sequence[str]) -> dict[str, str]:
        """Metric → its key."""
        return {metric: self.key(metric) for metric in metrics}

    def labels(self, metrics: Sequence[str]) -> dict[str, str]:
        """Key → the metric's name for people."""
        return {self.key(metric): self.label(metric) for metric in metrics}


@dataclass(frozen=True)
class Comparison:
    """Samples beside their reference: what the function of a metric is given."""

    options: EvaluateOptions
    reference: Reference
    samples: FeatureAccumulator

    @cached_property
    def rows(self) -> Tensor:
        """Features of the samples one by one, [n, F]; empty where they were not kept."""
        return self.samples.kept_rows()

    @cached_property
    def precision_recall(self) -> tuple[float | None, float | None]:
        """Both, which share their distances."""
        theirs, device = self.reference.rows, self.samples.device
        if theirs is None or min(len(theirs), len(self.rows)) <= NEIGHBOURS:
            return None, None
        return precision_recall(theirs.to(device), self.rows.to(device), half=self.options.half_distances)


def compute_metrics(
    options: EvaluateOptions, reference: Reference, samples: FeatureAccumulator, keys: Mapping[str, str]
) -> Values:
    """The values of `options.metrics` under their `keys`; None for those that features or reference do not offer.

    What belongs to a metric, such as its standard deviation, stands under the same key with `_std`, `_bias` or
    `_interval` behind it.
    """
    comparison = Comparison(options, reference, samples)
    values: Values = {}
    for metric in options.metrics:
        module, _, function = METRICS[metric].compute.partition(":")
        found = getattr(importlib.import_module(module), function)(comparison)
        values |= {f"{keys[metric]}_{part}" if part else keys[metric]: value for part, value in found.items()}
    return values


def needs_rows(options: EvaluateOptions) -> bool:
    """Whether the metrics need the features of single images, and not their sums alone."""
    return any(METRICS[metric].needs_rows for metric in options.metrics) or options.bootstrap > 0


# Each returns its figure under "", and what belongs to it under the end of its key.


def fid(comparison: Comparison) -> Values:
    """The Fréchet distance of pool features; of few samples its bias, and its error bar where that is asked for."""
    reference, samples, rows = comparison.reference, comparison.samples, comparison.rows
    pool = samples.gaussian()
    own = rows if len(rows) == pool.count else None
    theirs = reference.rows if reference.rows is not None and len(reference.rows) == reference.pool.count else None
    distance = frechet_distance(reference.pool, pool, rows_a=theirs, rows_b=own)
    values: Values = {"": distance}
    if pool.count < FEW:
        halves = [frechet_distance(reference.pool, half) for half in samples.half_gaussians()]
        values["bias"] = sum(halves) / len(halves) - distance if halves else None
    if comparison.options.bootstrap > 1 and own is not None:
        deviation = bootstrap_std(reference.pool, own, replicates=comparison.options.bootstrap)
        margin = NORMAL_95 * deviation
        values |= {"std": deviation, "interval": (distance - margin, distance + margin)}
    return values


def sfid(comparison: Comparison) -> Values:
    """The Fréchet distance of spatial features."""
    theirs, ours = comparison.reference.spatial, comparison.samples.spatial_gaussian()
    return {"": None if theirs is None or ours is None else frechet_distance(theirs, ours)}


def inception_score(comparison: Comparison) -> Values:
    """The Inception Score, with its standard deviation over chunks."""
    score, deviation = comparison.samples.inception_score() or (None, None)
    return {"": score, "std": deviation}


def precision(comparison: Comparison) -> Values:
    """The share of samples that lie among the real images."""
    return {"": comparison.precision_recall[0]}


def recall(comparison: Comparison) -> Values:
    """The share of real images that lie among the samples."""
    return {"": comparison.precision_recall[1]}


def kid(comparison: Comparison) -> Values:
    """The kernel distance, with its standard deviation over subsets."""
    theirs = comparison.reference.rows
    distance, deviation = kernel_distance(theirs, comparison.rows) if theirs is not None else (None, None)
    return {"": distance, "std": deviation}
