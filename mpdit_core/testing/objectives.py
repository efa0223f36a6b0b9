"""The contract of a term of the training loss, as a check."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.flow.loss import TrainingLoss, random_batch
from mpdit_core.model.transformer import MPDiT
from mpdit_core.plugins import PluginError
from mpdit_core.protocols import Objective, TrainingBatch
from mpdit_core.size import Size
from mpdit_core.testing.conformance import ConformanceError, require, require_contract

IMAGES = 8
TEACHER_FEATURES = 12  # F
MODEL = ModelConfig(
    width=16, num_heads=2, stages=(Stage(4, 1), Stage(2, 1)), input_size=Size(8, 8), channels=4, num_classes=3,
    class_tokens=2,
)  # fmt: skip


def check_objective(objective: Objective, *, model: ModelConfig = MODEL, device: str = "cpu") -> None:
    """Checks an objective against its contract, on a small network with random weights.

    Checked: the loss is one finite number. Its gradient reaches the network and every parameter of the objective's own
    modules. It is the mean over the images: the same for any order and any split into equal parts, so that the number
    of processes and the accumulation do not matter. It draws no random numbers and does not change the batch. Training
    that is stopped and resumed from its parameters ends with the same bits.

    Args:
        objective: an instance.
        model: configuration of the network, for an objective that does not work with the default.
        device: device to compute on.

    Raises:
        ConformanceError: it breaks the contract; the message says how.
    """
    require_contract("objectives", type(objective), "an objective class")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = _loss(objective, model).to(device)
            with torch.device(device):
                batch = random_batch(model, objective.needs, images=IMAGES, teacher_features=TEACHER_FEATURES)
            _check_value(loss, batch)
            _check_gradients(loss, batch)
            _check_mean(loss, batch)
            _check_resume(objective, model, loss, batch)
    except PluginError as error:
        raise ConformanceError(f"expected a loss, but {error.what}") from error


def _loss(objective: Objective, model: ModelConfig) -> TrainingLoss:
    """The loss of the objective alone, with a network that has no zero weights."""
    network = MPDiT(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    teacher = TEACHER_FEATURES if "teacher" in objective.needs else 0
    return TrainingLoss(network, {"checked": objective}, teacher_features=teacher)


def _rows(batch: TrainingBatch, rows: slice | list[int]) -> TrainingBatch:
    parts: dict[str, Any] = {name: None if x is None else x[rows] for name, x in vars(batch).items()}
    return TrainingBatch(**parts)


def _check_value(loss: TrainingLoss, batch: TrainingBatch) -> None:
    given, state = copy.deepcopy(batch), torch.get_rng_state()
    (first, parts), (second, _) = loss(batch), loss(batch)
    require(torch.isfinite(first), "a finite loss", first.item())
    for name, part in parts.items():
        require(part.shape == () and torch.isfinite(part), f"one finite number logged as {name}", part)
    require(torch.equal(torch.get_rng_state(), state), "no random numbers but those of the batch")
    require(torch.equal(first, second), "the same loss the second time", f"{first.item()} and {second.item()}")
    unchanged = all(torch.equal(x, vars(batch)[name]) for name, x in vars(given).items() if x is not None)
    require(unchanged, "an unchanged batch")


def _gradients(loss: TrainingLoss, batch: TrainingBatch) -> dict[str, torch.Tensor]:
    loss.zero_grad()
    loss(batch)[0].backward()
    return {name: p.grad.detach().clone() for name, p in loss.named_parameters() if p.grad is not None}


def _check_gradients(loss: TrainingLoss, batch: TrainingBatch) -> None:
    found = _gradients(loss, batch)
    for name, gradient in found.items():
        require(gradient.isfinite().all(), f"a finite gradient of {name}")
    reached = [name for name, gradient in found.items() if name.startswith("network.") and gradient.any()]
    require(reached, "a gradient that reaches the network", "none")
    for name, _ in loss.term_modules.named_parameters():
        require(f"term_modules.{name}" in found, "a gradient of every parameter of its modules", f"none of {name}")


def _check_mean(loss: TrainingLoss, batch: TrainingBatch) -> None:
    def numbers(part: TrainingBatch) -> dict[str, torch.Tensor]:
        value, logged = loss(part)
        return {"the loss": value.detach()} | {f"what is logged as {name}": x.detach() for name, x in logged.items()}

    whole = numbers(batch)
    for what, parts in (
        ("in another order", [list(reversed(range(IMAGES)))]),
        ("in two parts", [slice(0, 4), slice(4, 8)]),
        ("image by image", [slice(i, i + 1) for i in range(IMAGES)]),
    ):
        found = [numbers(_rows(batch, rows)) for rows in parts]
        for name, expected in whole.items():
            mean = torch.stack([each[name] for each in found]).mean()
            words = f"{name}, the mean over images, the same {what}: {expected.item():.6g}"
            require(torch.isclose(mean, expected, rtol=1e-4, atol=1e-6), words, f"{mean.item():.6g}")


def _check_resume(objective: Any, model: ModelConfig, loss: TrainingLoss, batch: TrainingBatch) -> None:
    """Compares two steps of gradient descent with one step, a second network with those parameters, and its step."""

    def step(one: TrainingLoss) -> None:
        gradients = _gradients(one, batch)
        for name, parameter in one.named_parameters():
            if name in gradients:
                parameter.data -= 0.01 * gradients[name]

    again = _loss(replace(objective), model).to(batch.t.device)
    step(loss)
    with torch.no_grad():
        for parameter, saved in zip(again.parameters(), loss.parameters(), strict=True):
            parameter.copy_(saved)
    step(loss)
    step(again)
    same = all(torch.equal(a, b) for a, b in zip(loss.parameters(), again.parameters(), strict=True))
    require(same, "the same bits when training is resumed from the parameters; all other state must be constant")
