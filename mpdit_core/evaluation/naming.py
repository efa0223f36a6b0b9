"""What a figure may be called, decided in one place.

Only Inception with the published weights gives what papers call FID, sFID and so on. Figures of other Inception weights
or of other features have other keys in the record and other labels, so that no program can take one for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
