"""Measures finished latents with Inception, by the protocol of eval-fid: reference statistics, and rFID."""

from __future__ import annotations

from pathlib import Path

import torch

from mpdit_core.data.manifest import read_manifest
from mpdit_core.reporting import Reporter, Saved
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.options import DeviceOptions

RFID_IMAGES = 50_000


def write_reference(folder: Path, *, device: torch.device, trust: bool, report: Reporter) -> None:
    """Measures the reference statistics of eval-fid, and keeps them beside the latents.

    Args:
        trust: whether the source in the manifest may be code.
    """
    from mpdit_core.evaluation import measure_reference, plan_reference
    from mpdit_core.metrics.features import load_extractor

    extractor = load_extractor("inception", device=device)
    plan = plan_reference(str(folder), resolution=None, extractor=extractor, trust=trust)
    measure_reference(plan, extractor, device=device, world=World(), report=report)
    report(Saved(what="reference statistics", path=folder))


def measure_rfid(folder: Path, options: DeviceOptions, *, trust: bool, report: Reporter) -> float | None:
    """FID of decoded latents against the images, recorded in evals/ of the folder. Every process takes part.

    None unless Inception has its published weights.
    """
    from mpdit_core.evaluation import EvaluateOptions, evaluate

    wanted = EvaluateOptions(
        what=str(folder),
        reference=str(folder),
        num_samples=min(RFID_IMAGES, read_manifest(folder).count),
        metrics=("fid",),
        out=folder / "evals",
        device=options.device,
        trust=trust,
    )
    found = evaluate(wanted, report=report).metrics.get("fid")
    return found if isinstance(found, float) else None
