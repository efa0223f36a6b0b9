"""The adaptive solver keeps the contract, and a smaller tolerance costs more evaluations."""

from __future__ import annotations

from mpdit_torchdiffeq import Dopri5

from mpdit_core.testing import check_sampler


def test_keeps_the_contract():
    check_sampler(Dopri5)


def test_tolerance_sets_the_cost():
    coarse, fine = (check_sampler(Dopri5, options={"rtol": tol, "atol": tol}).nfe for tol in (1e-5, 1e-9))
    assert fine > 1.5 * coarse
