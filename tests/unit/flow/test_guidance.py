"""Guidance: the stated combination, intervals, schedules, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sample_helpers import write_model

from mpdit_core.errors import UserError
from mpdit_core.flow.guidance import Guidance, GuidedVelocity


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny").load()


def guided(network, guidance, x, t):
    with torch.no_grad():
        return GuidedVelocity(network, torch.tensor([1, 2]), null_label=10, guidance=guidance)(x, t)


def test_interval_and_full_guidance_agree_where_both_guide(network):
    full, part = Guidance(scale=3.0), Guidance(scale=3.0, interval=(0.3, 0.6))
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(guided(network, full, x, 0.5), guided(network, part, x, 0.5))
    assert torch.equal(guided(network, Guidance(), x, 0.7), guided(network, part, x, 0.7))
    assert not torch.allclose(guided(network, full, x, 0.7), guided(network, part, x, 0.7))


def test_guidance_is_the_stated_combination(network):
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.4])
    labels, null = torch.tensor([1, 2]), torch.tensor([10, 10])
    with torch.no_grad():
        cond, none = network(x, t, labels), network(x, t, null)
    assert torch.allclose(guided(network, Guidance(scale=2.5), x, 0.4), none + 2.5 * (cond - none), atol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_keep_the_mean_scale(schedule):
    guidance = Guidance(scale=3.0, schedule=schedule)
    assert np.mean([guidance.scale_at((i + 0.5) / 1000) for i in range(1000)]) == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("wrong", [{"interval": (0.8, 0.1)}, {"interval": (-0.1, 1.0)}, {"scale": float("nan")}])
def test_impossible_guidance_is_refused(wrong):
    with pytest.raises(UserError) as caught:
        Guidance(**wrong)
    assert caught.value.code == "invalid-value"


def test_the_network_gets_its_time_in_the_type_of_x():
    seen = []

    def network(x_t, t, labels):
        seen.append(t)
        return x_t

    velocity = GuidedVelocity(network, torch.tensor([0]), null_label=1)
    assert velocity(torch.zeros(1, 1, 2, 2, dtype=torch.float64), 0.25).dtype == torch.float64
    assert (seen[0].dtype, seen[0].tolist()) == (torch.float64, [0.25])
