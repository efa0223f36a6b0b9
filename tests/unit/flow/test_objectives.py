"""The terms of the training loss: their values against closed forms, their contract, and how they are added up."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from data_helpers import refused
from torch import Tensor, nn

from mpdit_core import plugins
from mpdit_core.api import LogPart, NetworkShape, Objective, Prediction, TrainedNetwork, TrainingBatch, option
from mpdit_core.config import ModelConfig
from mpdit_core.flow.loss import TrainingLoss, build_terms, network_shape
from mpdit_core.flow.objectives.contrastive import Contrastive
from mpdit_core.flow.objectives.flow_matching import WEIGHTINGS, FlowMatching
from mpdit_core.flow.objectives.velocity_direction import VelocityDirection
from mpdit_core.model.transformer import MPDiT
from mpdit_core.presets import load_preset
from mpdit_core.testing import ConformanceError, check_objective

TINY = load_preset("tiny").model


def batch_of(model: ModelConfig = TINY, images: int = 4, *, negative: bool = False) -> TrainingBatch:
    torch.manual_seed(0)
    shape = (images, model.channels, *model.input_size)
    other = torch.randn(shape) if negative else None
    return TrainingBatch(torch.randn(shape), torch.randn(shape), torch.rand(images), torch.arange(images), other)


def network(model: ModelConfig = TINY) -> MPDiT:
    torch.manual_seed(1)
    built = MPDiT(model)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return built


@pytest.mark.parametrize("weighting", ["uniform", *WEIGHTINGS])
@pytest.mark.parametrize("name", plugins.names("objectives"))
def test_every_objective_keeps_its_contract(name, weighting):
    if name == "flow-matching":
        check_objective(FlowMatching(weighting=weighting))
    elif weighting == "uniform":
        check_objective(plugins.build("objectives", name))


def test_of_a_whole_image_the_direction_suits_one_channel():
    check_objective(VelocityDirection(vector="image"), model=TINY)
    with refused("does-not-fit"):
        TrainingLoss(network(), {"velocity-direction": VelocityDirection()})


@pytest.mark.parametrize(("weighting", "weight"), [
    ("uniform", lambda _: 1.0),
    ("snr", lambda t: ((1 - t) / t) ** 2 * t**2),
    ("min-snr", lambda t: min(((1 - t) / t) ** 2, 5.0) * t**2),
])  # fmt: skip
def test_flow_matching_weights_the_squared_error_of_the_latents(weighting, weight):
    model, batch = network(), batch_of()
    x_t = (1 - batch.t.view(-1, 1, 1, 1)) * batch.latents + batch.t.view(-1, 1, 1, 1) * batch.noise
    errors = (model(x_t, batch.t, batch.labels) - (batch.noise - batch.latents)).square().flatten(1).mean(1)
    expected = sum(weight(t) * error for t, error in zip(batch.t.tolist(), errors.tolist(), strict=True)) / 4
    loss, parts = TrainingLoss(model, {"flow-matching": FlowMatching(weighting=weighting)})(batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert parts == {}


def test_the_noise_is_what_snr_weights():
    """Its weight is the squared error of the noise that the velocity points to, `x_t + (1 - t)·velocity`."""
    model, batch = network(), batch_of()
    t = batch.t.view(-1, 1, 1, 1)
    x_t = (1 - t) * batch.latents + t * batch.noise
    expected = (x_t + (1 - t) * model(x_t, batch.t, batch.labels) - batch.noise).square().mean()
    loss, _ = TrainingLoss(model, {"flow-matching": FlowMatching(weighting="snr")})(batch)
    torch.testing.assert_close(loss, expected)


def test_terms_are_weighted_added_up_and_logged():
    model, batch = network(), batch_of(negative=True)
    alone = {name: TrainingLoss(model, {name: term})(batch)[0] for name, term in
             {"flow-matching": FlowMatching(), "contrastive": Contrastive()}.items()}  # fmt: skip
    terms = build_terms({"flow-matching": {"weight": 2.0}, "contrastive": {}, "velocity-direction": {"weight": 0.0}})
    loss, parts = TrainingLoss(model, terms)(batch)
    assert parts.keys() == {"loss/flow-matching", "loss/contrastive"}
    torch.testing.assert_close(loss, 2 * alone["flow-matching"] + alone["contrastive"])
    torch.testing.assert_close(parts["loss/contrastive"] * 0.05, alone["contrastive"].detach())
    assert not any(part.requires_grad for part in parts.values())


def test_contrastive_flow_matching_has_its_minimum_away_from_the_other_image():
    """At (target - weight·negative) / (1 - weight), where the gradient of the sum is zero."""
    batch = batch_of(negative=True)
    assert batch.negative is not None
    velocity = ((batch.noise - batch.latents - 0.05 * batch.negative) / 0.95).requires_grad_()
    fixed: Any = SimpleNamespace(prediction=Prediction(batch.latents, velocity, None))
    losses = [term.weight * term.loss(fixed, batch, lambda *_: None) for term in (FlowMatching(), Contrastive())]
    (losses[0] + losses[1]).backward()
    torch.testing.assert_close(velocity.grad, torch.zeros_like(velocity), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("objective", "code"), [
    ({"flow-matchin": {}}, "no-such-plugin"),
    ({"flow-matching": {"wieght": 1.0}}, "unknown-key"),
    ({"flow-matching": {"weight": -1.0}}, "invalid-value"),
    ({"flow-matching": {"weighting": "cubic"}}, "invalid-value"),
    ({"flow-matching": {"weight": 0.0}}, "no-objective"),
])  # fmt: skip
def test_terms_are_refused_before_work(objective, code):
    with refused(code):
        build_terms(objective)


def test_the_shared_pass_gives_the_tokens_of_the_coarse_stage():
    model = network()
    seen = []

    @dataclass
    class Look(Objective):
        weight: float = option(1.0, "factor")
        needs: ClassVar[tuple[str, ...]] = ()

        def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:
            seen.append(network.prediction)
            assert network.prediction.x_t is seen[0].x_t, "one pass for all terms"
            again = network(network.prediction.x_t, batch.t, batch.labels)
            torch.testing.assert_close(again, network.prediction.velocity)
            assert network.prediction.tokens is not None
            log("tokens", network.prediction.tokens.square().mean())
            return network.prediction.velocity.mean()

    _, parts = TrainingLoss(model, {"a": Look(), "b": Look()})(batch_of())
    assert parts.keys() == {"loss/a", "loss/b", "a/tokens", "b/tokens"}
    shape = network_shape(TINY)
    assert shape.token_grid == (4, 4)
    assert seen[0].tokens.shape == (4, 16, TINY.width)
    assert network_shape(TINY.dense()).token_grid is None


@dataclass
class Broken(Objective):
    """An objective with one fault."""

    fault: str = option("sum", "which")
    weight: float = option(1.0, "factor")
    needs: ClassVar[tuple[str, ...]] = ()

    def modules(self, network: NetworkShape) -> nn.Module | None:
        if self.fault == "buffer":
            return nn.BatchNorm1d(network.width)
        return nn.Linear(network.width, 1) if self.fault == "unused" else None

    def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:
        velocity = network.prediction.velocity
        error = (velocity - batch.noise + batch.latents).square()
        if self.fault == "buffer":
            tokens = network.prediction.tokens
            assert tokens is not None
            return error.mean() + network.modules(tokens.mean(1)).mean() * network.modules.running_mean.sum()
        return {
            "sum": lambda: error.sum(),
            "batch": lambda: error.mean().sqrt(),
            "random": lambda: (error * torch.rand(())).mean(),
            "detached": lambda: error.detach().mean() + velocity.mean() * 0,
            "infinite": lambda: error.mean() / 0,
            "unused": lambda: error.mean(),
            "log": lambda: (log("sum", error.sum()), error.mean())[1],
        }[self.fault]()


@pytest.mark.parametrize("fault", ["sum", "batch", "random", "detached", "infinite", "unused", "log", "buffer"])
def test_the_check_finds_what_breaks_the_contract(fault):
    with pytest.raises(ConformanceError):
        check_objective(Broken(fault=fault))


def test_each_term_keeps_its_own_modules_after_the_loss():
    """A checkpointed head reads them again in the backward pass."""
    seen: list[TrainedNetwork] = []

    @dataclass
    class Head(Broken):
        def modules(self, network: NetworkShape) -> nn.Module:
            return nn.Linear(1, 1)

        def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:
            seen.append(network)
            return network.prediction.velocity.mean()

    loss = TrainingLoss(network(), {"one": Head(), "none": Broken(fault="batch"), "two": Head()})
    loss(batch_of())
    assert [each.modules for each in seen] == [loss.modules_of["one"], loss.modules_of["two"]]
    assert loss.modules_of["one"] is not loss.modules_of["two"]


def test_a_loss_of_another_shape_is_the_plugins_fault():
    @dataclass
    class PerImage(Broken):
        def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:
            return network.prediction.velocity.mean(dim=(1, 2, 3))

    with refused("broken-plugin"):
        TrainingLoss(network(), {"mine": PerImage()})(batch_of())
    with pytest.raises(ConformanceError, match="PerImage failed in loss"):
        check_objective(PerImage())
