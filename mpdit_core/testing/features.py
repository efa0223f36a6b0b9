"""What a feature extractor must keep to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.api import FeatureExtractor, Teacher
from mpdit_core.plugins import contract_problem
from mpdit_core.testing.conformance import require

if TYPE_CHECKING:
    from torch import Tensor


def check_features(extractor: FeatureExtractor, *, side: int = 32, device: str = "cpu") -> None:
    """Holds an extractor to its contract: float32 `[B, F]`, finite, repeatable, row by row the same in any batch.

    So must be the map of one that is a `Teacher` too, `[B, F, rows, columns]`; and it must follow a mirrored image
    where the class says that it does.

    Args:
        extractor: an instance, not loaded.
        side: side in pixels of the random images that it is given.
        device: device to compute on.

    Raises:
        ConformanceError: it breaks the contract; the message says how.
    """
    import torch

    problem = contract_problem("features", type(extractor))
    require(problem is None, "a feature extractor class", problem)
    require(isinstance(extractor.name, str) and extractor.name, "a name", extractor.name)
    extractor.load(torch.device(device))
    images = torch.randint(0, 256, (5, 3, side, side), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    images[4] = images[4] // 4
    images = images.to(device)
    before = images.clone()
    whole, again = extractor(images), extractor(images)
    require(torch.equal(images, before), "the images to be left as they are")
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
        scale = rows.abs().max().item()
        alone = torch.cat([getattr(features, kind) for features in one_by_one])
        for what, others in (("whatever the batch size", alone), ("under autocast", getattr(in_autocast, kind))):
            gap = (others.float() - rows).abs().max().item()
            require(gap <= 1e-4 * max(scale, 1e-6), f"{kind} the same {what}", f"{gap:.2g} off, at up to {scale:.2g}")
    require(not torch.allclose(whole.pool[0], whole.pool[4]), "other features for other images")
    if isinstance(extractor, Teacher):
        _check_feature_map(extractor, images, device=device)
    require(isinstance(extractor.fingerprint(), str) and extractor.fingerprint(), "a fingerprint, text")
    require(extractor.fingerprint() == extractor.fingerprint(), "the same fingerprint every time")


def _check_feature_map(teacher: Teacher, images: Tensor, *, device: str) -> None:
    import torch

    whole = teacher.feature_map(images)
    require(whole.ndim == 4 and len(whole) == len(images), "feature_map [B, F, rows, columns]", list(whole.shape))
    require(whole.dtype == torch.float32 and not whole.requires_grad, "feature_map in float32, without gradients")
    require(torch.isfinite(whole).all(), "feature_map finite")
    require(torch.equal(whole, teacher.feature_map(images)), "feature_map the same the second time")
    scale = max(whole.abs().max().item(), 1e-6)
    alone = torch.cat([teacher.feature_map(images[i : i + 1]) for i in range(len(images))])
    with torch.autocast(device, dtype=torch.bfloat16):
        in_autocast = teacher.feature_map(images)
    others = {"whatever the batch size": (whole, alone), "under autocast": (whole, in_autocast)}
    if getattr(teacher, "flip_equivariant", False):
        others["mirrored, of mirror images"] = (whole.flip(-1), teacher.feature_map(images.flip(-1)))
    for what, (expected, found) in others.items():
        gap = (found.float() - expected).abs().max().item()
        require(gap <= 1e-4 * scale, f"feature_map the same {what}", f"{gap:.2g} off, at up to {scale:.2g}")
