"""The training loss: the weighted sum of its terms, which are plugins of the kind `objectives` (flow/objectives/).

All terms share one pass of the network. `TrainingLoss` is the module that DDP and FSDP wrap: the network, and the
modules that the terms train along with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from mpdit_core import plugins
from mpdit_core.config import ModelConfig
from mpdit_core.errors import UserError
from mpdit_core.flow.path import interpolate
from mpdit_core.model.transformer import MPDiT
from mpdit_core.plugins import broken, plugin_errors
from mpdit_core.protocols import NetworkShape, Objective, Prediction, TrainingBatch

Terms = Mapping[str, Objective]
"""The terms of a loss by the names of their plugins."""


def build_terms(
    objective: Mapping[str, Mapping[str, Any]], *, trusted: Callable[[str], bool] = lambda _: True
) -> dict[str, Objective]:
    """The terms that the table `objective` of a configuration asks for, without those of weight 0.

    Args:
        trusted: tells by its name whether an objective that is not installed may be loaded.

    Raises:
        UserError: an unknown name or option, code that is not trusted (`untrusted-code`), or no term is left
            (`no-objective`).
    """
    built = {
        name: plugins.build("objectives", name, options, trusted=trusted(name)) for name, options in objective.items()
    }
    terms = {name: term for name, term in built.items() if term.weight}
    if not terms:
        raise UserError(
            "every term of the loss has the weight 0",
            code="no-objective",
            expected="at least one term with a positive weight",
            remedy="--set objective.flow-matching.weight=1",
        )
    return terms


def needs(terms: Terms) -> frozenset[str]:
    """The optional fields of `TrainingBatch` that the terms use."""
    return frozenset(name for term in terms.values() for name in term.needs)


def require_fit(terms: Terms, model: ModelConfig) -> None:
    """Raises the `UserError` of a term that does not fit the network. Nothing is computed."""
    with torch.device("meta"):
        for name, term in terms.items():
            _build_modules(name, term, network_shape(model, teacher_features=1))


def _build_modules(name: str, term: Objective, shape: NetworkShape) -> nn.Module | None:
    if "teacher" in term.needs and shape.token_grid is None:
        raise UserError(
            f"the objective {name} needs coarse tokens, but the network has only one stage",
            code="does-not-fit",
            expected="a network of two or more stages",
            remedy=f"another preset, or --set objective.{name}.weight=0",
        )
    with plugin_errors(term, "in modules"):
        return term.modules(shape)


def network_shape(model: ModelConfig, *, teacher_features: int = 0) -> NetworkShape:
    """The shapes from which terms build their modules."""
    coarse = model.stages[-2].patch_size if len(model.stages) > 1 else None
    h, w = model.input_size
    return NetworkShape(
        latent_shape=(model.channels, h, w),
        width=model.width,
        token_grid=None if coarse is None else (h // coarse, w // coarse),
        num_classes=model.num_classes,
        teacher_features=teacher_features,
    )


def random_batch(model: ModelConfig, needed: Collection[str], *, images: int, teacher_features: int) -> TrainingBatch:
    """A batch of random values with the optional fields `needed`, to check a loss or to count its operations."""
    shape = (images, model.channels, *model.input_size)
    rows, columns = network_shape(model).token_grid or (0, 0)
    return TrainingBatch(
        latents=torch.randn(shape),
        noise=torch.randn(shape),
        t=torch.rand(images),
        labels=torch.arange(images) % (model.num_classes + 1),
        negative=torch.randn(shape) if "negative" in needed else None,
        teacher=torch.randn(images, rows * columns, teacher_features) if "teacher" in needed else None,
    )


class TrainingLoss(nn.Module):
    """The loss of a batch, and its parts.

    Args:
        teacher_features: F, number of features per token of the latents' teacher; 0: no teacher.
    """

    def __init__(self, network: MPDiT, terms: Terms, *, teacher_features: int = 0):
        super().__init__()
        self.network, self.terms = network, terms
        shape = network_shape(network.config, teacher_features=teacher_features)
        self.term_modules = nn.ModuleDict()
        self.modules_of: dict[str, nn.Module | None] = {}
        for name, term in terms.items():
            modules = self.modules_of[name] = _build_modules(name, term, shape)
            if modules is not None:
                self.term_modules[name.replace(".", "_")] = modules  # torch allows no dots in these names

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts without gradients: `loss/TERM` if there are several terms; `TERM/NAME` as logged."""
        shared = _SharedPass(self.network, batch)
        losses: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        for name, term in self.terms.items():

            def log(part: str, value: Tensor, *, term: str = name) -> None:
                parts[f"{term}/{part}"] = value.detach().float()

            with plugin_errors(term, "in loss"):
                loss = term.loss(_Network(shared, self.modules_of[name]), batch, log)
            if loss.shape != () or loss.dtype != torch.float32:
                reason = f"it returned {loss.dtype} of shape {tuple(loss.shape)}, not one number in float32"
                raise broken(term, "in loss", reason)
            if len(self.terms) > 1:
                parts[f"loss/{name}"] = loss.detach()
            losses.append(loss if term.weight == 1 else term.weight * loss)
        return reduce(add, losses), parts


class _SharedPass:
    """One pass of the network over a batch, made when the first term asks for its prediction."""

    def __init__(self, network: MPDiT, batch: TrainingBatch):
        self.network, self.batch = network, batch

    @cached_property
    def prediction(self) -> Prediction:
        batch = self.batch
        x_t = interpolate(batch.latents, batch.noise, batch.t)
        coarse = self.network.coarse_stages(x_t, batch.t, batch.labels)
        return Prediction(x_t, velocity=self.network.last_stage(x_t, batch.t, *coarse), tokens=coarse[1])


class _Network:
    """The network as one term sees it, with the term's own modules, also during backward (`TrainedNetwork`)."""

    def __init__(self, shared: _SharedPass, modules: nn.Module | None):
        self._shared, self.modules = shared, modules

    @property
    def prediction(self) -> Prediction:
        return self._shared.prediction

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self._shared.network(x_t, t, labels)
