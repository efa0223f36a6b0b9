"""What an evaluation is asked for, and its protocol record: how a figure was made, and what to beware of."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt

from mpdit_core import __version__, plugins
from mpdit_core.evaluation.accumulator import METRICS
from mpdit_core.evaluation.images import ImageSource
from mpdit_core.evaluation.samples import SampledImages
from mpdit_core.metrics.features import Inception, is_published
from mpdit_core.metrics.neighbours import NEIGHBOURS
from mpdit_core.metrics.scores import IS_CHUNK
from mpdit_core.models.model_folder import ModelFolder
from mpdit_core.reporting import Event, Result, Saved, Summary, Table
from mpdit_core.sampling.generator import Generation, SampleOptions
from mpdit_core.settings import Settings

FEW = 10_000  # samples below which the bias of the Fréchet distance is worth a warning
LABELS = {"fid": "FID", "sfid": "sFID", "is": "Inception Score", "precision": "precision", "recall": "recall",
          "kid": "KID"}  # fmt: skip
PACKAGES = ("torch", "torchvision", "torch-fidelity", "diffusers", "numpy", "pillow")


class EvaluateOptions(Settings):
    """What is measured, and against what; how images are sampled is `SampleOptions`' business."""

    reference: str | None = Field(default=None, description="npz, folder, latents folder or data set; none: the run's")
    num_samples: PositiveInt | None = Field(default=None, description="exactly; none: 50,000, or all finished ones")
    features: str = Field(default="inception", description="inception, or a features plugin")
    feature_options: dict[str, Any] = Field(default={}, description="of the plugin")
    weights: str | None = Field(default=None, description="file with the Inception weights")
    metrics: tuple[str, ...] = Field(
        default=("fid", "sfid", "is", "precision", "recall"), strict=False, description=", ".join(METRICS)
    )
    half_distances: bool = Field(default=False, description="float16 distances for precision and recall, as ADM")
    bootstrap: int = Field(default=0, ge=0, description="replicates for the interval of the Fréchet distance")
    keep_samples: bool = Field(default=False, description="write the sampled images too")
    force: bool = Field(default=False, description="measure again what was measured before")


def protocol(
    what: str, options: EvaluateOptions, sampling: SampleOptions, model: ModelFolder | None, images: ImageSource | None,
    extractor: Any, generation: Generation | None, count: int, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    made = images if isinstance(images, SampledImages) else None
    record: dict[str, Any] = {
        "format": 2,
        "is_fid": is_published(extractor),
        "count": count,
        "extractor": {
            "name": options.features,
            "published": is_published(extractor) if isinstance(extractor, Inception) else None,
            "plugin": plugins.record("features", options.features, extractor),
            "fingerprint": extractor.fingerprint(),
            "weights": str(getattr(extractor, "weights_path", "")),
            "weights_sha256": getattr(extractor, "weights_sha256", ""),
            "resize": getattr(extractor, "resize_rule", ""),
            "dtype": "float32",
        },
        "distances": "float16" if options.half_distances else "float32, settled in float64",
        "is_chunk": IS_CHUNK,
        "neighbours": NEIGHBOURS,
        "bootstrap": options.bootstrap,
        "samples": images.describe() | {"sha256": images.fingerprint()} if images else None,
        "model": _model(model) if model else made.model if made else None,
        "sampling": _sampling(sampling, generation) if generation else made.sampling if made else None,
        "what": what,
        "device": device.type,
        "versions": {package: _version(package) for package in PACKAGES}
        | {"mpdit": __version__, "python": platform.python_version()},
    }
    record["metrics_asked"] = [key_of(key, record) for key in options.metrics]
    return record


def _model(model: ModelFolder) -> dict[str, Any]:
    return {
        "path": str(model.path),
        "weights_sha256": model.weights_sha256,
        "step": model.step,
        "preset": model.config.preset,
        "autoencoder": model.latents.autoencoder.model_dump(mode="json") if model.latents else None,
    }


def _sampling(options: SampleOptions, generation: Generation) -> dict[str, Any]:
    """The options, with what the sampler made of them: its defaults too, and the package it comes from."""
    plugin = plugins.record("samplers", options.sampler, generation.sampler)
    chosen = dict(plugin["options"])
    return options.model_dump(mode="json") | {
        "num_steps": chosen.pop("num_steps", None),
        "sampler_options": chosen,
        "plugin": plugin,
        "dtype": str(generation.autocast or torch.float32),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def warnings_of(
    options: EvaluateOptions,
    values: dict[str, Any],
    images: ImageSource | None,
    generation: Generation | None,
    count: int,
) -> list[str]:
    found = []
    labels = images.labels if images else [generation.labels(i) for i in range(count)] if generation else None
    if labels and "is" in options.metrics and len(set(labels)) > 1 and labels[:count] == sorted(labels[:count]):
        found.append("the samples are sorted by class: the Inception Score of contiguous chunks is far too low")
    bias = values.get("fid_bias")
    if count < FEW and "fid" in options.metrics:
        if bias is None:
            expected = "biased upwards"
        elif bias < values["fid"]:
            expected = f"about {bias:.3g} too high, by the distance of halves"
        else:
            expected = f"mostly bias: halves of them are {bias:.3g} farther away"
        found.append(f"{count} samples are few: the Fréchet distance is {expected}; compare equal counts only")
    return found


def label_of(key: str, record: dict[str, Any]) -> str:
    """A metric's name for people. Only published Inception weights give what papers call FID, sFID and so on."""
    if record["is_fid"]:
        return LABELS[key]
    if record["extractor"]["published"] is False:
        return f"{LABELS[key]} (unpublished weights)"
    name = record["extractor"]["name"]
    other = {
        "fid": "Fréchet distance",
        "sfid": "spatial Fréchet distance",
        "is": "class score",
        "kid": "kernel distance",
    }
    return f"{other.get(key, key)} ({name})"


def report(record: dict[str, Any], path: Path) -> Iterator[Event]:
    values = record["metrics"]
    names = {key: key_of(key, record) for key in METRICS}
    shown = [(key, values[name]) for key, name in names.items() if name in values]
    rows = [[label_of(key, record), _figure(v, values.get(f"{names[key]}_std"))] for key, v in shown]
    interval = values.get(key_of("fid_interval", record))
    if interval:
        rows[0][1] = f"{values[names['fid']]:.4f}  (95 %: {interval[0]:.3f} to {interval[1]:.3f})"
    about = f"{record['count']} samples against {record['reference'].get('path')}"
    yield Table(title=f"Evaluation of {record['what']}", columns=["metric", "value"], rows=rows, note=about)
    yield Saved(what="record", path=path)
    yield Summary(title="evaluated", rows={label_of(k, record): f"{v:.4f}" for k, v in shown if v is not None})
    yield Result(data=record | {"path": str(path)})


def _figure(value: float | None, spread: float | None) -> str:
    """With its standard deviation over chunks or subsets, where there are several."""
    if value is None:
        return "not offered by these features or reference"
    return f"{value:.4f} ± {spread:.4f}" if spread else f"{value:.4f}"


def key_of(key: str, record: dict[str, Any]) -> str:
    """A metric's name in the record: `fid` is kept for what may be put beside published figures."""
    if record["is_fid"] or key in ("precision", "recall"):
        return key
    if record["extractor"]["published"] is False:
        return f"unpublished_{key}"
    for old, new in (("sfid", "spatial_frechet_distance"), ("fid", "frechet_distance"), ("kid", "kernel_distance")):
        if key == old or key.startswith(old + "_"):
            return new + key.removeprefix(old)
    return "class_score" + key.removeprefix("is") if key in ("is", "is_std") else key
