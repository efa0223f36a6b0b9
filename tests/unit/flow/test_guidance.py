"""Guidance: every rule against its formula by hand, its limits, intervals, schedules, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sample_helpers import code_of, write_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.flow.guidance import GUIDANCE_RULES, Guidance, GuidedVelocity, load_rule
from mpdit_core.flow.guidance.rule import Network
from mpdit_core.flow.integrate import integrate
from mpdit_core.model.compute import forward_macs
from mpdit_core.model.transformer import MPDiT
from mpdit_core.presets import load_preset
from mpdit_core.samplers import load_sampler

LABELS, NULL = torch.tensor([1, 2]), 10


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny").load()


def guided(network, guidance, x, t):
    with torch.no_grad():
        return GuidedVelocity(network, LABELS, null_label=NULL, guidance=guidance)(x, t)


def by(name, scale=3.0, **options):
    return Guidance(scale=scale, rule=load_rule(name, options))


def toy(strong, weak, x=(0.0, 0.0)) -> tuple[Network, Tensor]:
    """A network of constant velocities of two values, for one image with a label and without; and a state x."""

    def network(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.where((labels == NULL).view(-1, 1, 1, 1), as_latents(weak), as_latents(strong))

    return network, as_latents(x)


def as_latents(values) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, 2)


def by_hand(guidance, *times, **velocities):
    """The guided velocity of a toy at the last of these times, as a list."""
    network, x = toy(**velocities)
    velocity = GuidedVelocity(network, LABELS[:1], null_label=NULL, guidance=guidance)
    return [velocity(x, t) for t in times][-1].flatten().tolist()


# Scale, interval, schedule


@pytest.mark.parametrize("rule", GUIDANCE_RULES)
def test_scale_1_and_times_outside_the_interval_are_the_network_alone(network, rule):
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        alone = network(x, torch.tensor([0.99]), LABELS)
    part = Guidance(scale=3.0, interval=(0.3, 0.6), rule=load_rule(rule, {}))
    assert torch.equal(guided(network, by(rule, 1.0), x, 0.99), alone)
    assert torch.equal(guided(network, part, x, 0.99), alone)
    assert torch.equal(guided(network, part, x, 0.5), guided(network, by(rule), x, 0.5))
    assert not torch.allclose(guided(network, by(rule), x, 0.99), alone)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_keep_the_mean_scale(schedule):
    guidance = Guidance(scale=3.0, schedule=schedule)
    assert np.mean([guidance.scale_at((i + 0.5) / 1000) for i in range(1000)]) == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("rule", GUIDANCE_RULES)
def test_a_schedule_gives_every_rule_its_scale(network, rule):
    x = torch.randn(2, 1, 16, 16)
    scheduled = Guidance(scale=3.0, schedule="linear", rule=load_rule(rule, {}))
    assert torch.equal(guided(network, scheduled, x, 0.25), guided(network, by(rule, 4.0), x, 0.25))


@pytest.mark.parametrize("wrong", [{"interval": (0.8, 0.1)}, {"interval": (-0.1, 1.0)}, {"scale": float("nan")}])
def test_impossible_guidance_is_refused(wrong):
    assert code_of(Guidance, **wrong) == "invalid-value"


@pytest.mark.parametrize(
    ("rule", "options", "code"),
    [
        ("cfg", {"eta": 0.5}, "unknown-key"),
        ("cfg-zero", {"zero_init": 1.0}, "invalid-value"),
        ("apg", {"momentum": -1.0}, "invalid-value"),
        ("apg", {"norm_threshold": -1.0}, "invalid-value"),
    ],
)
def test_impossible_options_of_a_rule_are_refused(rule, options, code):
    assert code_of(load_rule, rule, options) == code


# Rules by hand


def test_classifier_free_guidance_is_the_stated_combination(network):
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.4])
    with torch.no_grad():
        cond, none = network(x, t, LABELS), network(x, t, torch.full_like(LABELS, NULL))
    assert torch.allclose(guided(network, by("cfg", 2.5), x, 0.4), none + 2.5 * (cond - none), atol=1e-5)


def test_cfg_zero_scales_the_weak_velocity():
    # the multiple of (1, 0) closest to (3, 4) is (3, 0); from there twice the way to (3, 4)
    assert by_hand(by("cfg-zero", 2.0), 0.5, strong=(3.0, 4.0), weak=(1.0, 0.0)) == [3, 8]
    assert by_hand(by("cfg-zero", 2.0), 0.5, strong=(3.0, 4.0), weak=(0.0, 0.0)) == [6, 8]


def test_cfg_zero_stands_still_in_the_first_steps():
    network, x = toy(strong=(1.0, 0.0), weak=(0.0, 1.0))
    velocity = GuidedVelocity(network, LABELS[:1], null_label=NULL, guidance=by("cfg-zero"))
    states: list[Tensor] = []
    integrate(load_sampler("euler", num_steps=50), velocity, x, on_step=lambda step: states.append(step.x_t))
    assert [bool((state == 0).all()) for state in states] == [True] * 2 + [False] * 48
    assert (velocity.nfe, velocity.passes, velocity.saved) == (50, 96, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"eta": 0.0}, (2, 2)),  # strong + 2·(0, 1): the data lie along (1, 0)
        ({"eta": 0.5}, (3, 2)),
        ({"norm_threshold": 0.5**0.5 / 2}, (2, 1)),  # the data would move by sqrt(1/2) per scale: half of that
        ({"norm_threshold": 10.0}, (2, 2)),
    ],
)
def test_apg_projects_and_bounds_the_update(options, expected):
    rule = by("apg", 3.0, **{"norm_threshold": 0.0, "momentum": 0.0} | options)
    assert by_hand(rule, 0.5, strong=(2.0, 0.0), weak=(1.0, -1.0)) == pytest.approx(expected)


def test_apg_remembers_the_update_of_the_data():
    rule = by("apg", 3.0, eta=1.0, norm_threshold=0.0, momentum=-0.25)
    velocities = {"strong": (2.0, 0.0), "weak": (1.0, -1.0)}
    # d = (1, 1); at half the time the update before counts twice: (1, 1)·(1 - 2/4), then (1, 1)·(1 - 2·(1/2)/4)
    assert by_hand(rule, 1.0, **velocities) == pytest.approx((4, 2))
    assert by_hand(rule, 1.0, 0.5, **velocities) == pytest.approx((3, 1))
    assert by_hand(rule, 1.0, 0.5, 0.25, **velocities) == pytest.approx((3.5, 1.5))
    assert by_hand(rule, 1.0, 0.0, **velocities) == pytest.approx((4, 2))  # at t = 0 nothing can be divided by


def without_class_tokens(model: MPDiT) -> MPDiT:
    """The same weights in a model of one stage whose only class token is a vector of zeros, added to the time."""
    bare = MPDiT(model.config.model_copy(update={"class_tokens": 0}))
    weights = model.state_dict()
    table = next(name for name in weights if name.startswith("class_embedding"))
    bare.load_state_dict(weights | {table: torch.zeros_like(bare.state_dict()[table])})
    return bare


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_skip_tokens_guides_away_from_the_last_stage_without_them(tmp_path, positions):
    model = write_model(tmp_path / "m", stages=(Stage(2, 2),), positions=positions).load()
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.4])
    with torch.no_grad():
        strong, weak = model(x, t, LABELS), without_class_tokens(model)(x, t, LABELS)
    assert not torch.allclose(strong, weak, atol=1e-2)
    assert torch.allclose(guided(model, by("skip-tokens", 2.5), x, 0.4), weak + 2.5 * (strong - weak), atol=1e-5)


# What they have in common


@pytest.mark.parametrize(
    ("rule", "options"),
    [("apg", {"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0}),
     ("cfg-zero", {"optimised_scale": False, "zero_init": 0.0})],
)  # fmt: skip
@pytest.mark.parametrize("t", [1.0, 0.5, 0.0])
def test_rules_without_what_they_add_are_classifier_free_guidance(network, rule, options, t):
    x = torch.randn(2, 1, 16, 16)
    assert torch.allclose(guided(network, by(rule, **options), x, t), guided(network, by("cfg"), x, t), atol=1e-5)


@pytest.mark.parametrize("rule", GUIDANCE_RULES)
def test_an_image_does_not_depend_on_its_batch(network, rule):
    def latents(rows: slice) -> Tensor:
        velocity = GuidedVelocity(network, LABELS[rows], null_label=NULL, guidance=by(rule))
        with torch.no_grad():
            return integrate(load_sampler("euler", num_steps=4), velocity, noise[rows])

    noise = 3 * torch.randn(2, 1, 16, 16)
    both = latents(slice(0, 2))
    assert torch.equal(both, latents(slice(0, 2)))
    for i in (0, 1):
        assert torch.allclose(latents(slice(i, i + 1))[0], both[i], atol=1e-4)


@pytest.mark.parametrize("rule", ["cfg", "cfg-zero", "apg"])
def test_a_guide_takes_the_place_of_the_null_label(rule):
    network, x = toy(strong=(3.0, 4.0), weak=(1.0, 0.0))
    other, _ = toy(strong=(1.0, 0.0), weak=(9.0, 9.0))
    velocities = [
        GuidedVelocity(network, LABELS[:1], null_label=NULL, guidance=by(rule), guide=guide)(x, 0.5)
        for guide in (None, other)
    ]
    assert torch.equal(*velocities)


def test_skip_tokens_costs_what_torch_counts():
    config: ModelConfig = load_preset("digits").model
    with FakeTensorMode():
        velocity = GuidedVelocity(
            MPDiT(config), torch.zeros(1, dtype=torch.long), null_label=NULL, guidance=by("skip-tokens")
        )
        x = torch.empty(1, config.channels, *config.input_size)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            velocity(x, 0.5)
    assert 1 < velocity.passes < 2
    assert velocity.passes * forward_macs(config) == pytest.approx(counter.get_total_flops() / 2, rel=1e-9)


def test_the_network_gets_its_time_in_the_type_of_x():
    seen = []

    def network(x_t, t, labels):
        seen.append(t)
        return x_t

    velocity = GuidedVelocity(network, torch.tensor([0]), null_label=1)
    assert velocity(torch.zeros(1, 1, 2, 2, dtype=torch.float64), 0.25).dtype == torch.float64
    assert (seen[0].dtype, seen[0].tolist()) == (torch.float64, [0.25])
