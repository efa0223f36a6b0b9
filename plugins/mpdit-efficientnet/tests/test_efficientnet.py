"""The extractor keeps the contract, and its distance grows with what is done to the pictures."""

from __future__ import annotations

import torch
from mpdit_efficientnet import EfficientNet

from mpdit_core.testing import check_features


def test_keeps_the_contract():
    check_features(EfficientNet(), side=32)


def test_features_move_further_the_more_noise_is_added():
    extractor = EfficientNet()
    extractor.load(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(4, 3, 6, 6, generator=generator), 96, mode="bicubic").clamp(0, 1)
    noise = torch.randn(clean.shape, generator=generator)
    pools = [extractor((255 * (clean + a * noise).clamp(0, 1)).byte()).pool for a in (0, 0.005, 0.3)]
    little, much = ((pool - pools[0]).norm() for pool in pools[1:])
    assert 0 < 1.3 * little < much
