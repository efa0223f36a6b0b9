"""Every sampler: the order it claims, measured; the official ones against their golden values; the grids."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from golden_files import FILES, assert_close
from golden_files import load_model as load_golden

from mpdit_core import load_sampler
from mpdit_core.api import Sampler
from mpdit_core.errors import UserError
from mpdit_core.flow.guidance import GuidedVelocity
from mpdit_core.flow.integrate import integrate
from mpdit_core.samplers import euler_maruyama, heun_sde
from mpdit_core.samplers.euler_maruyama import DIFFUSIONS
from mpdit_core.samplers.grids import GRIDS
from mpdit_core.testing import GaussianFlow

ODE = ["euler", "heun", "midpoint", "rk4", "adams-bashforth-2", "adams-bashforth-3", "adams-bashforth-4"]
SDE = ["euler-maruyama", "heun-sde"]
OFFICIAL = ["euler-official", "euler-maruyama-official"]
EVALUATIONS = {  # for n steps
    "euler": lambda n: n,
    "heun": lambda n: 2 * n,
    "midpoint": lambda n: 2 * n,
    "rk4": lambda n: 4 * n,
    "adams-bashforth-2": lambda n: n,
    "adams-bashforth-3": lambda n: n + 2,
    "adams-bashforth-4": lambda n: n + 9,
    "euler-maruyama": lambda n: n,
    "heun-sde": lambda n: 2 * n,
    "euler-official": lambda n: n - 1,
    "euler-maruyama-official": lambda n: n,
}
MEAN, STD = 0.7, 0.4


def gaussian_velocity(x, t):
    """For the path from N(0, 1) to N(MEAN, STD²); x at t = 0 is MEAN + STD·noise."""
    return GaussianFlow(x, mean=MEAN, std=STD)(x, t)


def mixture_velocity(x, t):
    """For the path from noise to two narrow peaks: not linear in x."""
    means, std = torch.tensor([-1.0, 1.5], dtype=x.dtype).view(1, 1, 1, 2), 0.5
    variance = (1 - t) ** 2 * std**2 + t**2
    weights = torch.softmax(-((x - (1 - t) * means) ** 2) / (2 * variance), dim=-1)
    velocities = -means + (t - (1 - t) * std**2) / variance * (x - (1 - t) * means)
    return (weights * velocities).sum(-1, keepdim=True)


def slope(errors):
    """The order seen in the last halving of the step."""
    return math.log2(errors[-2] / errors[-1])


NOISE = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64).view(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ODE)
def test_order_on_an_exact_gaussian_flow(name):
    exact = MEAN + STD * NOISE
    errors = [
        float((integrate(load_sampler(name, num_steps=n), gaussian_velocity, NOISE) - exact).abs().max())
        for n in (40, 80, 160)
    ]
    assert slope(errors) > load_sampler(name).order - 0.3, errors


@pytest.mark.parametrize("name", ODE)
def test_order_on_a_nonlinear_flow_is_the_one_claimed(name):
    reference = integrate(load_sampler("rk4", num_steps=1000), mixture_velocity, NOISE)
    errors = [
        float((integrate(load_sampler(name, num_steps=n), mixture_velocity, NOISE) - reference).abs().mean())
        for n in (80, 160, 320)
    ]
    assert abs(slope(errors) - load_sampler(name).order) < 0.45, errors


def exact_moments(sampler, monkeypatch):
    """Mean and standard deviation of what an SDE sampler gives on the Gaussian flow, without drawing anything.

    There x at the end is linear in the starting noise and in each kick, so the answers to unit impulses say it all.
    """
    count = sampler.num_steps + 1
    draws = iter(range(1, count + 1))

    def impulse(like, _generator):
        kick = torch.zeros_like(like)
        kick[next(draws)] = 1
        return kick

    for module in (euler_maruyama, heun_sde):
        monkeypatch.setattr(module, "draw_noise", impulse)
    start = torch.zeros(count + 1, 1, 1, 1, dtype=torch.float64)
    start[-1] = 1  # row 0: nothing; rows 1…: one kick each; the last: the starting noise
    x = integrate(sampler, gaussian_velocity, start).flatten()
    return float(x[0]), float((x[1:] - x[0]).norm())


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("name", SDE)
def test_weak_order(name, diffusion, monkeypatch):
    """That of the final mean and standard deviation, for every diffusion, at the default t_min and t_max."""
    errors = []
    for n in (200, 400, 800):
        mean, std = exact_moments(load_sampler(name, num_steps=n, diffusion=diffusion), monkeypatch)
        errors.append(abs(mean - MEAN) + abs(std - STD))
    assert slope(errors) > load_sampler(name).order - 0.35, errors
    assert errors[-1] < 5e-3


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_euler(path):
    model, g = load_golden(path)
    velocity = GuidedVelocity(model, g["cfg.y"], null_label=model.config.null_label)
    with torch.no_grad():
        assert_close(integrate(load_sampler("euler-official", num_steps=9), velocity, g["x"]), g["euler.latents_9pts"])
        assert velocity.nfe == 8
        assert_close(integrate(load_sampler("euler", num_steps=8), velocity, g["x"]), g["euler.latents_9pts"])


@pytest.mark.parametrize("diffusion", ["SBDM", "sigma", "decreasing"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_sde(path, diffusion):
    model, g = load_golden(path)
    velocity = GuidedVelocity(model, g["cfg.y"], null_label=model.config.null_label)
    sampler = load_sampler("euler-maruyama-official", num_steps=9, diffusion=diffusion)
    torch.manual_seed(123)
    with torch.no_grad():
        assert_close(integrate(sampler, velocity, g["x"]), g[f"sde.{diffusion}_latents_9pts"])
    assert velocity.nfe == 9


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_and_contract(name):
    sampler = load_sampler(name, num_steps=12)
    assert isinstance(sampler, Sampler)
    calls = []
    noise = torch.randn(3, 2, 4, 4)
    states = list(sampler.steps(lambda x, t: calls.append(t) or -x, noise, torch.Generator()))
    assert len(calls) == EVALUATIONS[name](12)
    assert {type(t) for t in calls} == {float}
    assert [s.t for s in states] == sorted((s.t for s in states), reverse=True)
    assert states[-1].t == 0
    assert {s.x_t.dtype for s in states} == {torch.float32}


@pytest.mark.parametrize("name", [*SDE, "euler-maruyama-official"])
def test_noise_of_an_image_does_not_depend_on_its_batch(name):
    noise = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(1))

    def run(rows):
        generators = [torch.Generator().manual_seed(i) for i in rows]
        return integrate(load_sampler(name, num_steps=7), gaussian_velocity, noise[rows], generators)

    assert torch.equal(run([2, 0])[0], run([0, 1, 2, 3])[2])
    assert not torch.equal(run([0])[0], run([1])[0])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
def test_grids_fall_from_1_to_0(grid, num_steps):
    options = {"shift": 3.0} if grid == "shifted" else {}
    euler: Any = load_sampler("euler", num_steps=num_steps, grid=grid, **options)
    times = euler.times(torch.zeros(1, 4, 64, 64))
    assert (times[0], times[-1], len(times)) == (1.0, 0.0, num_steps + 1)
    assert all(a > b for a, b in itertools.pairwise(times))


def test_shift_follows_the_resolution():
    def middle(side):
        euler: Any = load_sampler("euler", num_steps=2, grid="shifted")
        return euler.times(torch.zeros(1, 4, side, side))[1]

    assert middle(32) == pytest.approx(0.5)
    assert middle(64) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("eular", {}, "euler"),
        ("euler", {"grid": "cosin"}, "grid"),
        ("euler", {"num_steps": 0}, "num_steps"),
        ("euler", {"num_steps": "ten"}, "num_steps"),
        ("euler", {"gird": "cosine"}, "gird"),
        ("euler", {"grid": "shifted", "shift": 0.0}, "shift"),
        ("euler", {"shift": 2.0}, "shift"),
        ("euler", {"grid": "shifted", "rho": 5.0}, "rho"),
        ("euler-official", {"num_steps": 1}, "num_steps"),
        ("euler-maruyama", {"diffusion": "SBDM", "t_max": 1.0}, "t_max"),
        ("euler-maruyama", {"t_min": 0.9, "t_max": 0.1}, "t_min"),
        ("euler-maruyama-official", {"grid": "cosine"}, "grid"),
    ],
)
def test_impossible_options_are_refused(name, options, key):
    with pytest.raises(UserError, match=key):
        load_sampler(name, **options)
