"""Images from a model: the generator, sets of samples, and views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.flow.guidance import GUIDANCE_RULES
    from mpdit_core.sampling.generator import Generator, SamplingPlan
    from mpdit_core.sampling.job import sample
    from mpdit_core.sampling.options import (
        SampleOptions,
        SampleResult,
        SamplingOptions,
        ViewResult,
        options_without_effect,
        warn_if_given,
    )
    from mpdit_core.sampling.sample_set import SampleSet
    from mpdit_core.sampling.views.nearest import TrainingPoints, find_training_images, search
    from mpdit_core.sampling.writers import WRITERS

__all__, __getattr__ = lazy_names(__name__, __file__)
