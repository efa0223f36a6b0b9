"""Each scheduler keeps the contract of a sampler and reaches the order measured for it."""

from __future__ import annotations

import pytest
from mpdit_diffusers import DPM, Euler, Heun, UniPC

from mpdit_core.testing import check_sampler


@pytest.mark.parametrize(("sampler", "order", "nfe"), [(Euler, 0.95, 20), (Heun, 1.9, 39)])
def test_keeps_the_contract(sampler: type, order: float, nfe: int):
    report = check_sampler(sampler)
    assert report.order >= order
    assert report.nfe == nfe


@pytest.mark.parametrize(
    ("sampler", "solver_order", "order"),
    [(DPM, 1, 0.95), (DPM, 2, 1.5), (DPM, 3, 1.95), (UniPC, 1, 1.7), (UniPC, 2, 2.2), (UniPC, 3, 1.3)],
)
def test_each_solver_order_reaches_the_order_measured_for_it(sampler: type, solver_order: int, order: float):
    report = check_sampler(sampler, options={"solver_order": solver_order})
    assert report.order >= order
    assert report.nfe == 20
