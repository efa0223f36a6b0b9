"""Two records side by side, and whether their metrics may be compared.

To add a rule: a row in `MUST_AGREE` (if it differs, metrics are not comparable), or in `CAUTIONS` or `SAMPLER_CAUTIONS`
(metrics are comparable, but a difference may have another cause than the model).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mpdit_core.evaluation.record import EvaluationRecord
from mpdit_core.plugins import PluginRecord
from mpdit_core.reporting import Reporter, Warning, silent
from mpdit_core.settings import Result, Settings, setting

T = TypeVar("T")


@dataclass(frozen=True)
class Rule(Generic[T]):
    """A value that matters in a comparison, and why; of a record, or of the sampler in it."""

    name: str
    value: Callable[[T], Any]
    why: str = ""


MUST_AGREE: tuple[Rule[EvaluationRecord], ...] = (
    Rule(
        "published weights",
        lambda r: r.extractor.published is True,
        "only one of them was made with the published Inception weights",
    ),
    Rule("number of samples", lambda r: r.count, "the Fréchet distance decreases with the number of samples"),
    Rule("features", lambda r: r.extractor.fingerprint, "distances in different features have different scales"),
    Rule("package of the features", lambda r: r.extractor.plugin.package, "its features are different"),
    Rule("reference", lambda r: r.reference.sha256, "the distances are to different images"),
    Rule("distances", lambda r: r.rules.distances, "float16 changes precision and recall by about 0.004"),
    Rule("chunk", lambda r: r.rules.is_chunk, "the Inception Score depends on the number of images per chunk"),
    Rule("neighbours", lambda r: r.rules.neighbours, "precision and recall increase with the number of neighbours"),
)
CAUTIONS: tuple[Rule[EvaluationRecord], ...] = (
    Rule("version of the features", lambda r: r.extractor.plugin.version, "their package has a different version"),
    Rule("options of the features", lambda r: r.extractor.plugin.options, "they were computed with different options"),
)
SAMPLER_CAUTIONS: tuple[Rule[PluginRecord], ...] = (  # of samplers with the same name
    Rule("package of the sampler", lambda s: s.package, "the samplers have one name, but come from different packages"),
    Rule("version of the sampler", lambda s: s.version, "its package has a different version"),
    Rule("source of the sampler", lambda s: s.sha256, "its source file has changed"),
)
OTHERS: tuple[Rule[EvaluationRecord], ...] = (
    Rule("model", lambda r: r.model and r.model.path),
    Rule("weights", lambda r: r.model and r.model.weights_sha256),
    Rule("step", lambda r: r.model and r.model.step),
    Rule("preset", lambda r: r.model and r.model.preset),
    Rule("autoencoder", lambda r: r.model and r.model.autoencoder and r.model.autoencoder.id),
    Rule("NFE", lambda r: r.sampling and r.sampling.nfe),
    Rule("passes", lambda r: r.sampling and r.sampling.passes),
    Rule("dtype", lambda r: r.sampling and r.sampling.dtype),
    Rule("path of the reference", lambda r: r.reference.path),
    Rule("device", lambda r: r.device),
)


class Difference(Settings):
    """A value that differs between two records."""

    name: str
    values: tuple[Any, Any] = setting(..., "values in the first and in the second record", strict=False)
    why: str = setting("", "its effect on the metrics")


class Comparison(Result):
    """Two evaluations and how they differ."""

    a: EvaluationRecord
    b: EvaluationRecord
    reasons: tuple[Difference, ...] = setting(..., "why the metrics are not comparable; empty: they are comparable")
    cautions: tuple[Difference, ...] = setting(..., "possible causes of a difference apart from the model")
    changed: tuple[Difference, ...] = setting(..., "options of sampling that differ")
    others: tuple[Difference, ...] = setting(..., "other values that differ")

    @property
    def comparable(self) -> bool:
        return not self.reasons


def compare_records(a: Path, b: Path, *, report: Reporter = silent) -> Comparison:
    """Compares the records in two files. Each reason and each caution is reported as a warning.

    Raises:
        UserError: a file that is not a record of an evaluation, or has another format version.
    """
    first, second = EvaluationRecord.read(a), EvaluationRecord.read(b)
    comparison = Comparison(
        a=first,
        b=second,
        reasons=_differences(MUST_AGREE, first, second),
        cautions=_cautions(first, second),
        changed=_changed_options(first, second),
        others=_differences(OTHERS, first, second),
    )
    for code, found in (("not-comparable", comparison.reasons), ("other-cause", comparison.cautions)):
        for difference in found:
            report(Warning(code=code, text=f"{difference.name}: {difference.why}"))
    return comparison


def _differences(rules: tuple[Rule[T], ...], a: T, b: T) -> tuple[Difference, ...]:
    pairs = [(rule, (rule.value(a), rule.value(b))) for rule in rules]
    return tuple(Difference(name=rule.name, values=pair, why=rule.why) for rule, pair in pairs if pair[0] != pair[1])


def _cautions(a: EvaluationRecord, b: EvaluationRecord) -> tuple[Difference, ...]:
    found = _differences(CAUTIONS, a, b)
    if a.sampling and b.sampling and a.sampling.sampler.name == b.sampling.sampler.name:
        found += _differences(SAMPLER_CAUTIONS, a.sampling.sampler, b.sampling.sampler)
    found = tuple(difference for difference in found if None not in difference.values)
    if a.extractor.published is False and b.extractor.published is False:
        why = "neither was made with the published weights: their metrics are comparable with each other only"
        found += (Difference(name="published weights", values=(False, False), why=why),)
    return found


def _changed_options(a: EvaluationRecord, b: EvaluationRecord) -> tuple[Difference, ...]:
    if not a.sampling or not b.sampling:
        return ()
    left, right = a.sampling.values(), b.sampling.values()
    return tuple(Difference(name=key, values=(left[key], right[key])) for key in left if left[key] != right[key])
