"""What `eval-fid` is asked for, and what `--make-reference` returns. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from mpdit_core.runtime.options import DeviceOptions
from mpdit_core.sampling.options import MODEL, SamplingOptions
from mpdit_core.settings import Result, setting

Metric = Literal["fid", "sfid", "is", "precision", "recall", "kid"]


class EvaluateOptions(SamplingOptions, DeviceOptions):
    """What is measured and against what; how images of a model are sampled is `SamplingOptions`."""

    what: str | None = setting(
        None, f"{MODEL}; or a folder, .npz or .safetensors of finished samples", argument=True, metavar="WHAT"
    )
    reference: str | None = setting(
        None, "real images to compare with: ADM .npz, folder, latents folder or data set",
        panel="Measuring", chosen="the model's training images",
    )  # fmt: skip
    num_samples: PositiveInt | None = setting(
        None, "number of images to evaluate", panel="Measuring",
        chosen="50,000, or all in WHAT",
    )  # fmt: skip
    features: str = setting(
        "inception", "feature extractor: inception, or a plugin (then the distance is not called FID)",
        panel="Measuring",
    )  # fmt: skip
    feature_options: dict[str, Any] = setting({}, "options of the feature extractor", table="features", typed=False)
    weights: Path | None = setting(
        None, "file with the Inception weights", metavar="FILE", panel="Measuring",
        strict=False, chosen="torch's cache, else downloaded",
    )  # fmt: skip
    metrics: tuple[Metric, ...] = setting(
        ("fid", "sfid", "is", "precision", "recall"), "metrics to compute, of fid,sfid,is,precision,recall,kid",
        panel="Measuring", strict=False,
    )  # fmt: skip
    half_distances: bool = setting(
        False, "float16 distances for precision and recall, as ADM's evaluator uses", panel="Measuring"
    )
    bootstrap: int = setting(0, "bootstrap replicates for the error bar of the distance", ge=0, panel="Measuring")
    sweep: tuple[str, ...] = setting(
        (), "evaluate every combination of these values, as guidance_scale=1,1.5,2",
        strict=False, repeated=True, metavar="KEY=V1,V2,…", panel="Measuring",
    )  # fmt: skip
    force: bool = setting(False, "measure again what was measured before", panel="Measuring")
    out: Path | None = setting(
        None, "folder of the record", metavar="DIR", panel="Output", strict=False, chosen="evals/ of the run"
    )
    trust: bool = setting(
        False, "run code that a model or latents name, such as file.py:Class as their data set", panel="Measuring"
    )
    keep_samples: bool = setting(False, "write the sampled images too", panel="Output")
    make_reference: Path | None = setting(
        None, "write an ADM-style reference of WHAT instead", metavar="OUT.npz",
        panel="Other work", strict=False, chosen="evaluate",
    )  # fmt: skip
    resolution: PositiveInt | None = setting(
        None, "side in pixels of a reference made from a folder or data set",
        panel="Other work", chosen="that of the latents",
    )  # fmt: skip


class ReferenceResult(Result):
    """A reference file that was written."""

    path: Path = setting(..., "the file")
    count: int = setting(..., "number of images in its statistics")
    features: str = setting(..., "name of the feature extractor")
