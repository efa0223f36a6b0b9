"""Checks that a plugin keeps its contract, to be called in its own tests; mpdit's plugins pass them too.

    from mpdit_core.testing import check_sampler
    def test_my_sampler(): check_sampler(MySampler)

Each raises a `ConformanceError` (an AssertionError) that says what was expected and what was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.testing.autoencoders import check_autoencoder
    from mpdit_core.testing.commands import check_command
    from mpdit_core.testing.conformance import ConformanceError
    from mpdit_core.testing.datasets import check_dataset
    from mpdit_core.testing.features import check_features
    from mpdit_core.testing.objectives import check_objective
    from mpdit_core.testing.samplers import GaussianFlow, SamplerReport, check_sampler

__all__, __getattr__ = lazy_names(__name__, __file__)
