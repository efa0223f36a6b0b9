"""The contract of feature extractors and teachers, as a check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpdit_core.protocols import FeatureExtractor, Teacher
from mpdit_core.testing.conformance import (
    require,
    require_close,
    require_contract,
    require_fingerprint,
    require_function_of_images,
)


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

    def features(images: Tensor) -> dict[str, Any]:
        found = extractor(images)._asdict()
        return {name: rows for name, rows in found.items() if rows is not None or name == "pool"}

    for name, rows in require_function_of_images(features, images, dtype=torch.float32).items():
        require(rows.ndim == 2, f"{name} [B, …], 2-D", list(rows.shape))
    if isinstance(extractor, Teacher):
        _check_feature_map(extractor, images)
    require_fingerprint(extractor)


def _check_feature_map(teacher: Teacher, images: Tensor) -> None:
    def feature_map(images: Tensor) -> dict[str, Tensor]:
        return {"feature_map": teacher.feature_map(images)}

    whole = require_function_of_images(feature_map, images, dtype=torch.float32)["feature_map"]
    require(whole.ndim == 4, "feature_map [B, F, rows, columns]", list(whole.shape))
    if getattr(teacher, "flip_equivariant", False):
        mirrored = teacher.feature_map(images.flip(-1))
        require_close(mirrored, whole.flip(-1), "feature_map the mirrored one for mirrored images")
