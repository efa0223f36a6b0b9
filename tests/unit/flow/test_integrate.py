"""The one loop over a sampler: what it gives, and what it says of a sampler that breaks its contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from mpdit_core import load_sampler
from mpdit_core.api import Step
from mpdit_core.errors import UserError
from mpdit_core.flow.integrate import integrate

NOISE = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """Yields the steps it was given; raises those that are exceptions."""

    given: tuple[Any, ...]
    num_steps: int = 1
    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False

    def steps(self, velocity_fn, noise, generator=None):
        for step in self.given:
            if isinstance(step, Exception):
                raise step
            yield step


def test_every_state_is_shown_and_the_last_is_returned():
    seen: list[Step] = []
    times: list[float] = []
    x = integrate(load_sampler("euler", num_steps=4), lambda x, t: times.append(t) or -x, NOISE, on_step=seen.append)
    assert [step.t for step in seen] == [0.75, 0.5, 0.25, 0.0]
    assert torch.equal(seen[-1].x_t, x)
    assert times == [1.0, 0.75, 0.5, 0.25]
    assert {type(t) for t in times} == {float}


@pytest.mark.parametrize(
    "given",
    [
        (),
        (Step(0.5, NOISE),),
        (Step(0.0, NOISE[:1]),),
        (Step(0.0, NOISE.double()),),
        (Step(0.5, NOISE), ZeroDivisionError("of its own")),
    ],
    ids=["yields nothing", "stops early", "changes the shape", "changes the type", "raises"],
)
def test_a_broken_sampler_is_named(given):
    with pytest.raises(UserError) as caught:
        integrate(Scripted(given=given), lambda x, t: -x, NOISE)
    assert caught.value.code == "broken-plugin"
    assert "Scripted" in caught.value.what


def test_what_the_callback_raises_ends_the_integration():
    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        integrate(load_sampler("euler", num_steps=3), lambda x, t: -x, NOISE, on_step=stop)
