"""The contract of feature extractors and teachers, as a check."""

from __future__ import annotations

import torch
from torch import Tensor

from mpdit_core.api import FeatureExtractor, Teacher
from mpdit_core.testing.conformance import require, require_close, require_contract, require_fingerprint


def check_features(extractor: FeatureExtractor, *, side: int = 32, device: str = "cpu") -> None:
    """Checks an extractor against its contract: features `[B, F]` float32, finite, equal every time and in any batch.

    If it is a `Teacher`, the same is checked for its map `[B, F, rows, columns]`; and that the map of a mirrored image
    is mirrored, where the class claims it.

    Args:
        extractor: an instance, not loaded.
        side: height and width in pixels of the random test images.
        device: device to compute on.

    Raises:
        ConformanceError: it breaks the contract; the message says how.
    """
    require_contract("features", type(extractor), "a feature extractor class")
    require(isinstance(extractor.name, str) and extractor.name, "a name", extractor.name)
    extractor.load(torch.device(device))
    images = torch.randint(0, 256, (5, 3, side, side), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    images[4] = images[4] // 4
    images = images.to(device)
    before = images.clone()
    whole, again = extractor(images), extractor(images)
    require(torch.equal(images, before), "unchanged images")
    one_by_one = [extractor(images[i : i + 1]) for i in range(5)]
    with torch.autocast(device, dtype=torch.bfloat16):
        in_autocast = extractor(images)
    for kind in ("pool", "spatial", "logits"):
        rows = getattr(whole, kind)
        if kind != "pool" and rows is None:
            continue
        require(isinstance(rows, torch.Tensor) and rows.ndim == 2 and len(rows) == 5, f"{kind} [B, …], 2-D", rows)
        require(rows.dtype == torch.float32, f"{kind} in float32", rows.dtype)
        require(not rows.requires_grad, f"{kind} without gradients")
        require(torch.isfinite(rows).all(), f"{kind} finite")
        require(torch.equal(rows, getattr(again, kind)), f"{kind} the same the second time")
        alone = torch.cat([getattr(features, kind) for features in one_by_one])
        require_close(alone, rows, f"{kind} the same whatever the batch size")
        require_close(getattr(in_autocast, kind), rows, f"{kind} the same under autocast")
    require(not torch.allclose(whole.pool[0], whole.pool[4]), "other features for other images")
    if isinstance(extractor, Teacher):
        _check_feature_map(extractor, images, device=device)
    require_fingerprint(extractor)


def _check_feature_map(teacher: Teacher, images: Tensor, *, device: str) -> None:
    whole = teacher.feature_map(images)
    require(whole.ndim == 4 and len(whole) == len(images), "feature_map [B, F, rows, columns]", list(whole.shape))
    require(whole.dtype == torch.float32 and not whole.requires_grad, "feature_map in float32, without gradients")
    require(torch.isfinite(whole).all(), "feature_map finite")
    require(torch.equal(whole, teacher.feature_map(images)), "feature_map the same the second time")
    alone = torch.cat([teacher.feature_map(images[i : i + 1]) for i in range(len(images))])
    require_close(alone, whole, "feature_map the same whatever the batch size")
    with torch.autocast(device, dtype=torch.bfloat16):
        require_close(teacher.feature_map(images), whole, "feature_map the same under autocast")
    if getattr(teacher, "flip_equivariant", False):
        mirrored = teacher.feature_map(images.flip(-1))
        require_close(mirrored, whole.flip(-1), "feature_map the mirrored one for mirrored images")
