"""End to end against torch-fidelity's own `calculate_metrics`, on the same files with the same (random) weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_helpers import enter_folder, measured
from PIL import Image

TWO = ("real", 16), ("made", 12)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    enter_folder(tmp_path, monkeypatch)
    for seed, (name, count) in enumerate(TWO):
        draw = np.random.RandomState(seed)
        Path(name).mkdir()
        for i in range(count):  # smooth, of many colours, so that the features differ
            coarse = Image.fromarray(draw.randint(0, draw.randint(20, 257), (5, 5, 3)).astype(np.uint8))
            coarse.resize((64, 64), Image.Resampling.BICUBIC).save(f"{name}/{i:03d}.png")
    return tmp_path


def test_fid_isc_and_kid_are_those_of_torch_fidelity(here, inception_weights):
    from torch_fidelity import calculate_metrics

    theirs = calculate_metrics(
        input1="made", input2="real", fid=True, isc=True, kid=True, isc_splits=1, kid_subset_size=12, kid_subsets=100,
        samples_shuffle=False, feature_extractor_weights_path=str(inception_weights), cuda=False, cache=False,
        verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    ours: dict[str, Any] = measured(
        "made", "real", features="inception", weights=inception_weights, metrics=("fid", "is", "kid")
    ).metrics
    assert theirs["frechet_inception_distance"] > 1
    assert theirs["inception_score_mean"] > 1.003
    assert abs(theirs["kernel_inception_distance_mean"]) > 1e-4
    assert ours["unpublished_fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["unpublished_is"] - 1 == pytest.approx(theirs["inception_score_mean"] - 1, rel=1e-3)
    assert ours["unpublished_kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
