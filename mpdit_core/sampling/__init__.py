"""Images from a model: the engine, sets of samples, and pictures of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.sampling.generator import Generator, SampleBatch, sampling_values, settle
    from mpdit_core.sampling.job import sample
    from mpdit_core.sampling.options import PluginRecord, SampleOptions, SampleResult, SamplingOptions, ViewResult
    from mpdit_core.sampling.sample_set import SampleSet
    from mpdit_core.sampling.sweeps import Axis, read_sweeps, with_value

__all__ = [
    "Axis",
    "Generator",
    "PluginRecord",
    "SampleBatch",
    "SampleOptions",
    "SampleResult",
    "SampleSet",
    "SamplingOptions",
    "ViewResult",
    "read_sweeps",
    "sample",
    "sampling_values",
    "settle",
    "with_value",
]

__getattr__ = lazy_names(
    __name__,
    {
        "generator": ["Generator", "SampleBatch", "sampling_values", "settle"],
        "job": ["sample"],
        "options": ["PluginRecord", "SampleOptions", "SampleResult", "SamplingOptions", "ViewResult"],
        "sample_set": ["SampleSet"],
        "sweeps": ["Axis", "read_sweeps", "with_value"],
    },
)
