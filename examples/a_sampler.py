"""A sampler of your own, its measured order, and its error beside other samplers': `python examples/a_sampler.py`.

`mpdit sample MODEL --sampler ./examples/a_sampler.py:Ralston` uses this file directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mpdit_core import load_sampler
from mpdit_core.api import NoiseSource, Sampler, Step, VelocityFn, option
from mpdit_core.flow.integrate import integrate
from mpdit_core.testing import GaussianFlow, check_sampler


@dataclass(frozen=True, kw_only=True)
class Ralston:
    """Ralston's method (1962): the second-order method with two evaluations that has the smallest error bound."""

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    num_steps: int = option(25, "number of intervals between t = 1 and t = 0", minimum=1)

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        x_t, length = noise, 1 / self.num_steps
        for n in range(self.num_steps):
            t = 1 - n * length
            first = velocity_fn(x_t, t)
            second = velocity_fn(x_t - 2 / 3 * length * first, t - 2 / 3 * length)
            x_t = x_t - length * (first + 3 * second) / 4
            yield Step(1 - (n + 1) * length, x_t)


def error(sampler: Sampler) -> float:
    """Largest error at t = 0 on a flow with a known solution."""
    noise = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flow = GaussianFlow(noise)
    return (integrate(sampler, flow, noise) - (flow.mean + flow.std * noise)).abs().max().item()


def main() -> None:
    report = check_sampler(Ralston)  # fails if the class breaks the contract or does not reach its order
    print(f"Ralston: order {report.order:.2f}, {report.nfe} evaluations for 20 steps")
    for nfe in (10, 20, 40, 80):
        euler = error(load_sampler("euler", num_steps=nfe))
        heun, ralston = error(load_sampler("heun", num_steps=nfe // 2)), error(Ralston(num_steps=nfe // 2))
        print(f"error with {nfe} evaluations: euler {euler:.6f}, heun {heun:.6f}, ralston {ralston:.6f}")


if __name__ == "__main__":
    main()
