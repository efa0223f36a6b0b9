"""Two protocol records side by side, and in words whether their figures may be compared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.reporting import Event, Note, Result, Table, Warn
from mpdit_core.runtime.files import read_json

# what must agree for two figures to be comparable, and why
MUST_AGREE = {
    "count": "the Fréchet distance falls with the number of samples",
    "extractor.fingerprint": "distances in other features have another scale",
    "extractor.plugin.package": "another package's features are other features",
    "reference.sha256": "the distance is to other images",
    "distances": "float16 distances move precision and recall by about 0.004",
    "is_chunk": "the Inception Score depends on the chunk",
    "neighbours": "precision and recall grow with the number of neighbours",
}
# what figures of the same features, reference and rules may still owe their difference to, rather than to the model
CAUTIONS = {
    "extractor.plugin.version": "the features come from another version of their package, though under one fingerprint",
    "extractor.plugin.options": "the features were computed under other options, though under one fingerprint",
    "sampling.plugin.package": "the samplers of one name are of different packages",
    "sampling.plugin.version": "the sampler comes from another version of its package",
    "sampling.plugin.sha256": "the sampler's source file has changed",
}
MAY_DIFFER = (
    "model.path", "model.weights_sha256", "model.step", "model.preset", "model.autoencoder.id", "sampling.sampler",
    "sampling.num_steps", "sampling.sampler_options", "sampling.nfe", "sampling.guidance_scale",
    "sampling.guidance_interval", "sampling.guidance_schedule", "sampling.guide", "sampling.seed", "sampling.classes",
    "sampling.dtype", "reference.path", "device", "versions.mpdit", "versions.torch", "versions.torch-fidelity",
)  # fmt: skip


def compare_records(a: Path, b: Path) -> Iterator[Event]:
    """A table of both, and a warning for each reason why the figures are not comparable.

    Raises:
        UserError: a file that is no record of eval-fid.
    """
    records = [_read(a), _read(b)]
    labels: dict[str, str] = records[1].get("labels", {}) | records[0].get("labels", {})
    keys = list(dict.fromkeys(k for r in records for k in r["metrics"]))
    rows = [[_label(key, labels), *(_shown(r["metrics"].get(key)) for r in records)] for key in keys]
    for key in (*MUST_AGREE, *CAUTIONS, *MAY_DIFFER):
        values = [_at(r, key) for r in records]
        if values[0] != values[1]:
            rows.append([key, *map(_shown, values)])
    yield Table(title="Two evaluations", columns=["", str(a), str(b)], rows=rows)
    reasons, cautions, changed = not_comparable(*records), differences(*records), changed_options(*records)
    for reason in reasons:
        yield Warn(text=f"not comparable: {reason}")
    for caution in cautions:
        yield Warn(text=caution)
    if changed:
        yield Note(text=f"the samples were made otherwise: {', '.join(changed)}")
    if not reasons:
        yield Note(text="comparable: same features, reference, number of samples and rules")
    metrics = [r["metrics"] for r in records]
    yield Result(
        data={
            "comparable": not reasons,
            "reasons": reasons,
            "cautions": cautions,
            "changed": changed,
            "metrics": metrics,
        }
    )


def not_comparable(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """In words, why the figures of two records may not be put beside each other; empty if they may."""
    reasons = []
    published = [_at(r, "extractor.published") for r in (a, b)]
    if True in published and False in published:
        which = "first" if published[0] is False else "second"
        reasons.append(f"the {which} was made with Inception weights that are not the published ones")
    for key, why in MUST_AGREE.items():
        left, right = _at(a, key), _at(b, key)
        if left != right:
            reasons.append(f"{key} differs ({_shown(left)}, {_shown(right)}): {why}")
    return reasons


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """In words, what else than the model the figures may owe their difference to."""
    found = []
    same_sampler = _at(a, "sampling.sampler") == _at(b, "sampling.sampler")
    for key, why in CAUTIONS.items():
        left, right = _at(a, key), _at(b, key)
        if left != right and None not in (left, right) and (same_sampler or not key.startswith("sampling.")):
            found.append(f"{why} ({_shown(left)}, {_shown(right)})")
    if _at(a, "extractor.published") is False and _at(b, "extractor.published") is False:
        found.append("neither was made with the published Inception weights: compare them with each other alone")
    return found


def changed_options(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The options of sampling that differ, with both values."""
    keys = ("sampler", "num_steps", "sampler_options", "guidance_scale", "guidance_interval", "guidance_schedule",
            "guide", "classes", "seed")  # fmt: skip
    left, right = a.get("sampling"), b.get("sampling")
    if not left or not right:
        return []
    return [f"{k} ({_plain(left.get(k))}, {_plain(right.get(k))})" for k in keys if left.get(k) != right.get(k)]


def _read(path: Path) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict) or "metrics" not in record or "extractor" not in record:
        raise UserError(f"{path} is no record of eval-fid", expected="a file of a run's evals/")
    return record


def _at(record: dict[str, Any], key: str) -> Any:
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _label(key: str, labels: dict[str, str]) -> str:
    """For people: a metric's, or of what belongs to it, as `fid_std`."""
    base, _, belonging = key.rpartition("_")
    return f"{labels[base]}: {belonging}" if key not in labels and base in labels else labels.get(key, key)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list) and all(isinstance(v, float) for v in value):
        return " to ".join(f"{v:.4g}" for v in value)
    return _plain(value)


def _plain(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text[:40]
