"""Each scheduler keeps the contract of a sampler and reaches the order measured for it."""

from __future__ import annotations

import pytest
from mpdit_diffusers import DPM, Euler, Heun, UniPC

from mpdit_core.testing import check_sampler


@pytest.mark.parametrize(
    ("sampler", "order", "nfe"), [(Euler, 0.95, 20), (Heun, 1.9, 39), (DPM, 1.5, 20), (UniPC, 1.9, 20)]
)
def test_keeps_the_contract(sampler: type, order: float, nfe: int):
    report = check_sampler(sampler)
    assert report.order >= order
    assert report.nfe == nfe


@pytest.mark.parametrize("sampler", [DPM, UniPC])
@pytest.mark.parametrize("solver_order", [1, 3])
def test_solver_order_is_an_option(sampler: type, solver_order: int):
    check_sampler(sampler, options={"solver_order": solver_order})
