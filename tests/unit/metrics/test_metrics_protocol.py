"""Acceptance lines of the protocol: the resize, torch-fidelity's own figures, memory of precision and recall."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpdit_core.metrics import neighbours
from mpdit_core.metrics.scores import InceptionScore, frechet_distance
from mpdit_core.metrics.statistics import statistics_of


def tf1_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow 1's rule in float32: source position i · (in / out), corners not aligned. `image [C, H, W]`."""
    side = image.shape[-1]
    at = np.arange(size, dtype=np.float32) * np.float32(side / size)
    low = np.floor(at).astype(np.int64)
    high, part = np.minimum(low + 1, side - 1), (at - low).astype(np.float32)
    top, bottom = image[:, low], image[:, high]
    upper = top[:, :, low] + (top[:, :, high] - top[:, :, low]) * part
    lower = bottom[:, :, low] + (bottom[:, :, high] - bottom[:, :, low]) * part
    return upper + (lower - upper) * part[:, None]


@pytest.mark.parametrize("side", [32, 256, 512])
def test_resize_is_that_of_tensorflow_one_to_the_bit(side: int):
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    image = np.random.RandomState(side).randint(0, 256, (3, side, side)).astype(np.float32)
    found = interpolate_bilinear_2d_like_tensorflow1x(
        torch.from_numpy(image)[None], size=(299, 299), align_corners=False
    )
    assert np.abs(found[0].numpy() - tf1_bilinear(image, 299)).max() == 0


def test_distance_and_score_are_torch_fidelitys():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric

    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, 48, generator=draw) + shift for shift in (0.0, 0.3))
    theirs = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), False)
    assert frechet_distance(statistics_of(x), statistics_of(y)) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-3
    )
    score = InceptionScore.empty(300, 48, chunk=100).plus(torch.arange(300), x)
    expected = isc_features_to_metric(x, splits=3, shuffle=False)["inception_score_mean"]
    assert score.score().value == pytest.approx(expected, rel=1e-6)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_precision_and_recall_hold_no_square_of_distances(monkeypatch):
    monkeypatch.setattr(neighbours, "ELEMENTS_AT_ONCE", 2**16)
    x = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        neighbours.precision_recall(x[:1000], x)
    assert largest.elements <= 2**17  # not the 9,000,000 distances of the samples
