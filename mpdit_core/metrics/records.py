"""Two protocol records side by side, and in words whether their figures may be compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.events import Event, Note, Result, Table, Warn
from mpdit_core.files import read_json

# what must agree for two figures to be comparable, and why
MUST_AGREE = {
    "count": "the Fréchet distance falls with the number of samples",
    "extractor.fingerprint": "distances in other features have another scale",
    "reference.sha256": "the distance is to other images",
    "reference.path": "",
    "distances": "float16 distances move precision and recall by about 0.004",
    "is_chunk": "the Inception Score depends on the chunk",
}
MAY_DIFFER = (
    "model.path", "model.weights_sha256", "model.step", "model.autoencoder.id", "sampling.sampler",
    "sampling.num_steps", "sampling.nfe", "sampling.guidance_scale", "sampling.guidance_interval",
    "sampling.seed", "sampling.classes",
    "sampling.dtype", "device", "versions.mpdit", "versions.torch",
)  # fmt: skip


def compare_records(a: Path, b: Path) -> Iterator[Event]:
    """A table of both, and a warning for each reason why the figures are not comparable.

    Raises:
        UserError: a file that is no record of eval-fid.
    """
    records = [_read(a), _read(b)]
    keys = list(dict.fromkeys(k for r in records for k in r["metrics"]))
    rows = [[key, *(_shown(r["metrics"].get(key)) for r in records)] for key in keys]
    for key in (*MUST_AGREE, *MAY_DIFFER):
        values = [_at(r, key) for r in records]
        if values[0] != values[1]:
            rows.append([key, *map(_shown, values)])
    yield Table(title="Two evaluations", columns=["", str(a), str(b)], rows=rows)
    reasons = []
    for key, why in MUST_AGREE.items():
        left, right = (_at(r, key) for r in records)
        if left != right and why:
            reasons.append(f"{key} differs ({_shown(left)}, {_shown(right)}): {why}")
    for reason in reasons:
        yield Warn(text=f"not comparable: {reason}")
    if not reasons:
        yield Note(text="comparable: same features, reference, number of samples and rules")
    yield Result(data={"comparable": not reasons, "reasons": reasons, "metrics": [r["metrics"] for r in records]})


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


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "–" if value is None else str(value)[:40]
