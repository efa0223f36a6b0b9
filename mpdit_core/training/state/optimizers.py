"""The optimizer of a run: which torch optimizer updates which parameter, and their state as named tensors.

To add one: its settings in config.py (`OptimizerConfig`), a function here, and its call in `Optimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mpdit_core.config import AdamWSettings, MuonConfig, TrainConfig
from mpdit_core.training.state.parallel import local, shard_like

STATE = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"), torch.optim.Muon: ("momentum_buffer",)}
"""Names of the state that an optimizer keeps per parameter after its first step; `step` is one number."""

Parameters = Mapping[str, Tensor]


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon updates the parameter: a weight matrix of a block's attention or MLP."""
    return name.startswith("stages.") and ".blocks." in name and ".modulation." not in name and parameter.ndim == 2


def adamw(parameters: Parameters, config: AdamWSettings, learning_rate: float) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters."""
    return [
        torch.optim.AdamW(
            parameters.values(),
            lr=learning_rate, betas=config.betas, weight_decay=config.weight_decay, eps=config.eps, fused=True,
        )
    ]  # fmt: skip


def muon(parameters: Parameters, config: MuonConfig, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, with steps as large as AdamW's; AdamW for all other parameters."""
    matrices = [parameter for name, parameter in parameters.items() if is_matrix(name, parameter)]
    rest = {name: parameter for name, parameter in parameters.items() if not is_matrix(name, parameter)}
    return [
        *adamw(rest, config, learning_rate),
        torch.optim.Muon(
            matrices,
            lr=config.matrix_learning_rate or learning_rate,
            momentum=config.momentum, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw",
        ),
    ]  # fmt: skip


class Optimizer:
    """Updates the named parameters, which may be sharded."""

    def __init__(self, parameters: Parameters, train: TrainConfig):
        self.parameters = dict(parameters)
        if isinstance(train.optimizer, MuonConfig):
            self.parts = muon(self.parameters, train.optimizer, train.learning_rate)
        else:
            self.parts = adamw(self.parameters, train.optimizer, train.learning_rate)
        self.peaks = [part.param_groups[0]["lr"] for part in self.parts]
        self.part_of = {p: part for part in self.parts for p in part.param_groups[0]["params"]}

    def step(self, factor: float) -> None:
        """Updates the parameters with `factor` times the peak learning rates, and clears their gradients."""
        for part, peak in zip(self.parts, self.peaks, strict=True):
            part.param_groups[0]["lr"] = peak * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of `state` after a step."""
        return {
            f"{slot}.{name}": () if slot == "step" else tuple(parameter.shape)
            for name, parameter in self.parameters.items()
            for slot in STATE[type(self.part_of[parameter])]
        }

    def state(self) -> dict[str, Tensor]:
        """`exp_avg.<parameter>`, `momentum_buffer.<parameter>`, …: the tensors themselves, by name.

        Their order, which the files of a sharded checkpoint follow, is the same after a restore.
        """
        return {
            f"{slot}.{name}": value
            for name, parameter in self.parameters.items()
            for slot, value in sorted(self.part_of[parameter].state.get(parameter, {}).items())
        }

    @torch.no_grad()
    def load(self, flat: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, from whole tensors; an empty state resets the optimizer."""
        for part in self.parts:
            part.state.clear()
        for key, value in flat.items():
            slot, _, name = key.partition(".")
            parameter = self.parameters[name]
            if slot != "step":
                value = shard_like(parameter, value.to(parameter.dtype))
            if slot != "step" or parameter.is_cuda:  # AdamW keeps its count of steps on the CPU, fused on the GPU
                value = value.to(local(parameter).device)
            self.part_of[parameter].state[parameter][slot] = value.clone()
