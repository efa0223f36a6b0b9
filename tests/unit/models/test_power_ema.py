"""The profiles of power-function EMAs, and sums of them, against what they are defined as."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mpdit_core.models.power_ema import Profile, combine, gamma_of, inner_products, widths_within
from mpdit_core.training.state.ema import EMA, PowerAverage

STEPS, EVERY = 512, 32
TRACKED = (0.05, 0.1)


@pytest.fixture(scope="module")
def measured() -> dict[tuple[float, int], np.ndarray]:
    """What the average of a width weights each step with, by width and number of steps done.

    The weights of step t are the unit vector number t, so the average is its own profile.
    """
    model = torch.nn.Linear(STEPS, 1, bias=False)
    widths = (*TRACKED, 0.03, 0.07, 0.2)
    ema, found = EMA(model, [PowerAverage(width) for width in widths]), {}
    for step in range(1, STEPS + 1):
        model.weight.data.zero_()[0, step - 1] = 1.0
        ema.update(step - 1)
        if step % EVERY == 0:
            found |= {(w, step): ema.state(i)["weight"][0].double().numpy().copy() for i, w in enumerate(widths)}
    return found


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.1, 6.94)])
def test_the_exponents_are_those_of_the_paper(width, gamma):
    assert gamma_of(width) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("width", [0.001, 0.05, 0.1, 0.28])
def test_an_exponent_has_its_width(width):
    gamma = gamma_of(width)
    assert gamma >= 0
    assert math.sqrt(gamma + 1) / (gamma + 2) / math.sqrt(gamma + 3) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize("width", [0.03, 0.05, 0.1, 0.2])
def test_an_average_has_the_profile_and_the_width_it_is_named_by(measured, width):
    weights, t = measured[width, STEPS], np.arange(1, STEPS + 1)
    power = gamma_of(width) + 1
    assert weights == pytest.approx((t / STEPS) ** power - ((t - 1) / STEPS) ** power, abs=2e-7)
    mean = (weights * t).sum()
    assert math.sqrt((weights * (t - mean) ** 2).sum()) / STEPS == pytest.approx(width, rel=0.01)


def test_inner_products_are_integrals():
    profiles = [Profile(0.05, 70), Profile(0.1, 100), Profile(0.28, 31)]
    t = (np.arange(200_000) + 0.5) / 2000
    curves = [(p.gamma + 1) * t**p.gamma / p.step ** (p.gamma + 1) * (t <= p.step) for p in profiles]
    expected = [[(a * b).sum() / 2000 for b in curves] for a in curves]
    assert inner_products(profiles, profiles) == pytest.approx(np.array(expected), rel=1e-4)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.2])
def test_a_combination_is_as_close_as_it_says(measured, width):
    """The sums of measured profiles; steps of whole numbers can only be closer than the integrals."""
    profiles = [Profile(tracked, step) for step in range(EVERY, STEPS + 1, EVERY) for tracked in TRACKED]
    (found,) = combine(profiles, [Profile(width, STEPS)])
    assert sum(found.coefficients) == pytest.approx(1)
    made = sum(x * measured[profile] for x, profile in zip(found.coefficients, profiles, strict=True))
    wanted = measured[width, STEPS]
    assert 0.5 * found.residual < np.linalg.norm(made - wanted) / np.linalg.norm(wanted) <= found.residual + 1e-5
    assert found.residual < 0.05


def test_a_tracked_width_is_itself():
    profiles = [Profile(tracked, step) for step in range(EVERY, STEPS + 1, EVERY) for tracked in TRACKED]
    (found,) = combine(profiles, [Profile(0.1, STEPS)])
    assert found.coefficients == pytest.approx([0] * (len(profiles) - 1) + [1], abs=1e-9)
    assert found.residual < 1e-6


def test_widths_within_are_those_of_a_smaller_residual():
    profiles = [Profile(tracked, step) for step in range(EVERY, STEPS + 1, EVERY) for tracked in TRACKED]
    lowest, highest = widths_within(profiles, STEPS)
    inside, outside = (lowest, 0.07, highest), (lowest * 0.9, highest * 1.06)
    assert all(each.is_close for each in combine(profiles, [Profile(w, STEPS) for w in inside]))
    assert not any(each.is_close for each in combine(profiles, [Profile(w, STEPS) for w in outside]))
