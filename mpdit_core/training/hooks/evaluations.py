"""Measures a run's samples every `preview.evaluate_every` steps, as `mpdit eval-fid` does."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import torch

from mpdit_core import evaluation
from mpdit_core.data.sources import require_trusted
from mpdit_core.errors import UserError
from mpdit_core.reporting import Note, Warning
from mpdit_core.training.hooks.checkpoints import Checkpoints
from mpdit_core.training.hooks.metrics import StepMetrics
from mpdit_core.training.options import TrainOptions
from mpdit_core.training.session import Session
from mpdit_core.training.setup import RunPlan


def require_evaluation(plan: RunPlan, options: TrainOptions, device: torch.device) -> None:
    """Raises `UserError` for a feature extractor or reference that would fail at the first evaluation."""
    preview = plan.config.preview
    if preview.evaluate_every:
        typed = options.settings.get("preview", {}).get("evaluate_features")  # a name that is typed is trusted
        trusted = plan.trust or typed == preview.evaluate_features
        evaluation.require_features(preview.evaluate_features, device, trusted=trusted)
        require_trusted(plan.latents.manifest.plan.source.given, trust=plan.trust)


class Evaluation:
    """Writes a checkpoint, samples from its first EMA without guidance, and measures the samples' Fréchet distance.

    Records are written to the run's `evals/`, values to its metrics. Training itself does not depend on it.
    """

    def __init__(self, session: Session, *, checkpoints: Checkpoints, metrics: StepMetrics):
        self.session, self.checkpoints, self.metrics = session, checkpoints, metrics

    def after(self, step: int) -> None:
        """Measures the run at `step`, where it is due; a failure is reported and does not end the run.

        All processes must call it.
        """
        if not self._is_due(step):
            return
        self.metrics.drain()
        with self.session.clock.paused():
            try:
                self.checkpoints.save()
                values = self._measure(self.session.run.checkpoint(step))
            except UserError as error:
                text = f"no evaluation at step {step}: {error.what}"
                self.session.report(Warning(code="evaluation-failed", text=text))
                return
        if self.session.world.is_main:
            self.metrics.write_line(values, step=step)

    def run_missing(self) -> None:
        """Measures the checkpoint that the run resumes from, if its evaluation is due and not logged yet."""
        step = self.session.step
        if self._is_due(step) and not self.session.world.on_main(lambda: self._is_logged(step)):
            self.after(step)

    def _is_due(self, step: int) -> bool:
        every = self.session.config.preview.evaluate_every
        return every > 0 and step > 0 and step % every == 0

    def _measure(self, checkpoint: Path) -> dict[str, float]:
        preview = self.session.config.preview
        options = evaluation.EvaluateOptions(
            what=str(checkpoint),
            num_samples=preview.evaluate_samples,
            features=preview.evaluate_features,
            metrics=("fid",),
            out=self.session.run.evals,
            trust=self.session.plan.trust,
            precision=self.session.config.train.precision,
            device=self.session.device.type,  # pyright: ignore[reportArgumentType]
        )
        record = evaluation.evaluate(options, report=self.session.report)
        values = {f"eval/{name}": float(v) for name, v in record.metrics.items() if isinstance(v, int | float)}
        shown = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in values.items())
        self.session.report(Note(text=f"{checkpoint.name}: {shown} on {preview.evaluate_samples} samples"))
        return values

    def _is_logged(self, step: int) -> bool:
        """Whether metrics.jsonl has the values of an evaluation at `step`."""
        newest = takewhile(lambda line: line["step"] == step, self.session.run.newest_metrics())  # none is later
        return any(key.startswith("eval/") for line in newest for key in line)
