"""The data set and both extractors keep their contracts, and the classifier recognises digits it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mpdit_digits.dataset import Digits
from mpdit_digits.features import DigitFeatures, PixelFeatures

from mpdit_core.testing import check_dataset, check_features

CPU = torch.device("cpu")


def test_data_set_keeps_the_contract():
    check_dataset(Digits())


@pytest.mark.parametrize("extractor", [DigitFeatures, PixelFeatures])
def test_features_keep_the_contract(extractor: type):
    check_features(extractor())


def pictures(data: Digits, rows: range) -> torch.Tensor:
    stack = np.stack([np.asarray(data.image(row)) for row in rows])
    return torch.from_numpy(stack)[:, None].expand(-1, 3, -1, -1)


def test_data_set_holds_all_scans_in_ten_classes():
    items = Digits().items()
    assert len(items) == 1797
    assert np.bincount([item.label for item in items]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_pictures_use_the_whole_range_and_shrink_back_to_the_scan():
    data = Digits()
    picture = data.image(0)
    assert (picture.mode, picture.size) == ("L", (16, 16))
    assert picture.getextrema() == (0, 255)
    from sklearn.datasets import load_digits

    scan = load_digits(return_X_y=True)[0][0].reshape(8, 8) * 255 / 16
    back = np.asarray(picture, dtype=float).reshape(8, 2, 8, 2).mean(axis=(1, 3))
    assert np.abs(back - scan).mean() < 10


def test_side_is_an_option_and_changes_the_fingerprint():
    assert Digits(side=32).image(5).size == (32, 32)
    assert Digits(side=32).fingerprint() != Digits().fingerprint()


def test_classifier_knows_the_scans_it_was_not_fitted_on():
    data, extractor = Digits(), DigitFeatures()
    extractor.load(CPU)
    labels = torch.tensor([item.label for item in data.items()])[::6]
    logits = extractor(pictures(data, range(0, 1797, 6))).logits
    assert logits is not None
    assert (logits.argmax(1) == labels).float().mean() >= 0.99


@pytest.mark.parametrize("side", [16, 64])
def test_features_depend_on_content_not_on_size(side: int):
    extractor = DigitFeatures()
    extractor.load(CPU)
    small, large = (extractor(pictures(Digits(side=s), range(20))) for s in (16, side))
    assert small.logits is not None
    assert large.logits is not None
    assert torch.equal(small.logits.argmax(1), large.logits.argmax(1))


def test_pixels_are_the_grey_values():
    images = pictures(Digits(), range(3))
    pool = PixelFeatures()(images).pool
    assert pool.dtype == torch.float32
    assert torch.allclose(pool, images[:, 0].flatten(1) / 255)
