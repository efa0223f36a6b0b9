"""A metric is one row, and the function that the row names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mpdit_core.evaluation.metric_values import compute_metrics, key_and_label
from mpdit_core.evaluation.options import METRICS, EvaluateOptions, Metric


def brightness(measured) -> dict:
    return {"": measured.samples.mean, "std": 0.5}


def test_one_row_is_all_it_takes(monkeypatch):
    row = Metric("brightness", "mean_of_features", "mean of the features", f"{__name__}:brightness")
    monkeypatch.setitem(METRICS, "brightness", row)
    monkeypatch.setitem(__import__("sys").modules, __name__, SimpleNamespace(brightness=brightness))
    options = EvaluateOptions().model_copy(update={"metrics": ("brightness",)})
    key, label = key_and_label("brightness", None, "cells")
    assert (key, label) == ("mean_of_features", "mean of the features (cells)")
    reference: Any = SimpleNamespace()
    samples: Any = SimpleNamespace(mean=3.0)
    values = compute_metrics(options, reference, samples, {"brightness": key})
    assert values == {"mean_of_features": 3.0, "mean_of_features_std": 0.5}
