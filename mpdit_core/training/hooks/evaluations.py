"""Measuring a run's samples while it trains (`preview.evaluate_every`), as `mpdit eval-fid` does."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import torch

from mpdit_core.config import PreviewConfig
from mpdit_core.errors import UserError
from mpdit_core.evaluation.job import EvaluateOptions, evaluate
from mpdit_core.metrics.features import build_extractor
from mpdit_core.reporting import Event, Note, Result, Saved, Summary, Table, Warn
from mpdit_core.sampling.generator import SampleOptions


def check(preview: PreviewConfig, device: torch.device) -> None:
    """Raises `UserError` now for an extractor that would only fail at the first evaluation."""
    if preview.evaluate_every:
        build_extractor(preview.evaluate_features).load(device)


def evaluate_checkpoint(
    checkpoint: Path, *, run: Path, preview: PreviewConfig, device: str
) -> Generator[Event, None, dict[str, float]]:
    """Measures `checkpoint` (its first EMA, unguided); the record lands in `RUN/evals`. All processes must call it.

    Returns:
        the metrics as numbers. What goes wrong is a warning, not the end of the run.
    """
    options = EvaluateOptions(
        num_samples=preview.evaluate_samples, features=preview.evaluate_features, metrics=("fid",)
    )
    data: dict = {}
    warned: list[Warn] = []
    try:
        for event in evaluate(str(checkpoint), options, SampleOptions(), out=run / "evals", device=device):
            if isinstance(event, Result):
                data = event.data
            elif isinstance(event, Warn):
                warned.append(event)
            elif not isinstance(event, Summary | Table | Note | Saved):
                yield event
    except UserError as error:
        yield Warn(text=f"no evaluation of {checkpoint.name}: {error.what}")
        return {}
    yield from (warning for warning in warned if warning.text not in data["warnings"])  # those are in each record
    values = {f"eval/{k}": float(v) for k, v in data["metrics"].items() if isinstance(v, int | float)}
    shown = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in values.items())
    yield Note(text=f"{checkpoint.name}: {shown or 'measured'} on {preview.evaluate_samples} samples")
    return values


def already_logged(metrics: Path, step: int) -> bool:
    """Whether metrics.jsonl has the evaluation of `step`: a finished run that is started again measures nothing new."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return any(json.loads(line)["step"] == step for line in lines if '"eval/' in line)
