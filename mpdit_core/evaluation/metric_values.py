"""The values of metrics: how they are computed from samples and reference, and their names.

Only Inception with the published weights gives what papers call FID, sFID and so on. Values from other Inception
weights or other features have other keys in the record and other labels, so that no program confuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name

from torch import Tensor

from mpdit_core.evaluation.options import METRICS, EvaluateOptions
from mpdit_core.evaluation.record import Value
from mpdit_core.evaluation.reference import Reference
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.neighbours import NEIGHBOURS, precision_recall
from mpdit_core.metrics.scores import bootstrap_std, frechet_distance, kernel_distance

FEW = 10_000  # with fewer samples a warning states the bias of the Fréchet distance
NORMAL_95 = 1.96  # standard deviations of a normal distribution that contain 95 %

Values = dict[str, Value]


def key_and_label(metric: str, published: bool | None, features: str) -> tuple[str, str]:
    """The key of `metric` in the record, such as `fid`, `unpublished_fid` or `frechet_distance`, and its label.

    Args:
        published: whether Inception has the published weights; None: another network.
        features: name of the extractor.
    """
    row = METRICS[metric]
    if published is None:
        return row.other_key, f"{row.other_label} ({features})"
    if published:
        return metric, row.label
    key = metric if row.other_key == metric else f"unpublished_{metric}"
    return key, f"{row.label} (unpublished weights)"


@dataclass(frozen=True)
class MetricInputs:
    """Samples and their reference, from which the function of a metric computes its values."""

    options: EvaluateOptions
    reference: Reference
    samples: FeatureAccumulator

    @property
    def rows(self) -> Tensor:
        """Features of the single samples, [n, F]; empty where they were not kept."""
        return self.samples.kept_rows()

    @cached_property
    def precision_recall(self) -> tuple[float | None, float | None]:
        """Both at once, because they share their distances; None where there are too few images."""
        theirs, device = self.reference.rows, self.samples.device
        if theirs is None or min(len(theirs), len(self.rows)) <= NEIGHBOURS:
            return None, None
        return precision_recall(theirs.to(device), self.rows.to(device), half=self.options.half_distances)


def compute_metrics(
    options: EvaluateOptions, reference: Reference, samples: FeatureAccumulator, keys: Mapping[str, str]
) -> Values:
    """The values of `options.metrics` under their `keys`; None where features or reference are not sufficient.

    Standard deviation, bias and interval of a metric have its key with `_std`, `_bias` and `_interval` appended.
    """
    measured = MetricInputs(options, reference, samples)
    values: Values = {}
    for metric in options.metrics:
        found: Values = resolve_name(METRICS[metric].compute)(measured)
        values |= {f"{keys[metric]}_{part}" if part else keys[metric]: value for part, value in found.items()}
    return values


def needs_rows(options: EvaluateOptions) -> bool:
    """Whether the metrics need the features of single images, not only their sums."""
    return any(METRICS[metric].needs_rows for metric in options.metrics) or options.bootstrap > 0


# The functions of `METRICS`. Each returns its value under "", and further values under the suffix of their key.


def fid(measured: MetricInputs) -> Values:
    """The Fréchet distance of pool features; with few samples its bias; its error bar where that is asked for."""
    reference, samples, rows = measured.reference, measured.samples, measured.rows
    pool = samples.gaussian()
    own = rows if len(rows) == pool.count else None
    theirs = reference.rows if reference.rows is not None and len(reference.rows) == reference.pool.count else None
    distance = frechet_distance(reference.pool, pool, rows_a=theirs, rows_b=own)
    values: Values = {"": distance}
    if pool.count < FEW:
        halves = [frechet_distance(reference.pool, half) for half in samples.half_gaussians()]
        values["bias"] = sum(halves) / 2 - distance if len(halves) == 2 else None  # a half needs two images
    if measured.options.bootstrap > 1 and own is not None:
        deviation = bootstrap_std(reference.pool, own, replicates=measured.options.bootstrap)
        margin = NORMAL_95 * deviation
        values |= {"std": deviation, "interval": (distance - margin, distance + margin)}
    return values


def sfid(measured: MetricInputs) -> Values:
    """The Fréchet distance of spatial features."""
    theirs, ours = measured.reference.spatial, measured.samples.spatial_gaussian()
    return {"": None if theirs is None or ours is None else frechet_distance(theirs, ours)}


def inception_score(measured: MetricInputs) -> Values:
    """The Inception Score, with its standard deviation over chunks."""
    score, deviation = measured.samples.inception_score() or (None, None)
    return {"": score, "std": deviation}


def precision(measured: MetricInputs) -> Values:
    """The share of samples that lie among the real images."""
    return {"": measured.precision_recall[0]}


def recall(measured: MetricInputs) -> Values:
    """The share of real images that lie among the samples."""
    return {"": measured.precision_recall[1]}


def kid(measured: MetricInputs) -> Values:
    """The kernel distance, with its standard deviation over subsets."""
    theirs = measured.reference.rows
    distance, deviation = kernel_distance(theirs, measured.rows) if theirs is not None else (None, None)
    return {"": distance, "std": deviation}
