"""The memory formula against the tensors that autograd really keeps, on tensors without data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mpdit_core.config import ModelConfig, NetworkType
from mpdit_core.model.compute import parameter_count
from mpdit_core.model.memory import inference_memory, saved_activations, training_memory
from mpdit_core.model.transformer import MPDiT
from mpdit_core.presets import load_preset


def kept_by_autograd(config: ModelConfig, batch_size: int, precision: NetworkType) -> int:
    """Bytes of all storages that the forward pass saves, parameters and tables left out."""
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # so that no storage's address is used twice
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FakeTensorMode():
        model = MPDiT(config).train()
        x_t = torch.empty(batch_size, config.channels, *config.input_size)
        t, labels = torch.empty(batch_size), torch.zeros(batch_size, dtype=torch.long)
        low = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), low:
            loss = (model(x_t, t, labels).float() - x_t).square().mean()
        assert loss.requires_grad
        ours = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    return sum(size for storage, size in storages.items() if storage not in ours)


SWITCHES = [{"mlp": "swiglu"}, {"norm": "rms"}, {"qk_norm": True}, {"positions": "rope"}, {"positions": "both"},
            {"mlp": "swiglu", "norm": "rms", "qk_norm": True, "positions": "both"}]  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "switches"),
    [(name, {}) for name in ("b-256", "xl-512", "v2-b-512", "dit-s-256", "ablation-b-tokens", "digits")]
    + [("b-256", switches) for switches in SWITCHES],
)
def test_saved_activations_are_those_of_autograd(name: str, switches: dict[str, Any], precision: NetworkType):
    config = load_preset(name).model.model_copy(update=switches)
    each = kept_by_autograd(config, 4, precision) - kept_by_autograd(config, 3, precision)  # cast weights drop out
    assert saved_activations(config, precision=precision) == pytest.approx(each, rel=0.01)


def test_training_memory_is_the_sum_of_its_parts():
    config = load_preset("b-256").model
    parameters = parameter_count(config)
    memory = training_memory(config, 8, precision="float32", ema_copies=2)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.ema) == (
        4 * parameters, 4 * parameters, 8 * parameters, 8 * parameters,
    )  # fmt: skip
    assert memory.activations == 8 * saved_activations(config, precision="float32")
    assert memory.total == 24 * parameters + memory.activations
    assert training_memory(config, 8).weights == 6 * parameters  # and their copies in bfloat16


def test_checkpointing_and_inference_hold_far_less():
    config = load_preset("xl-256").model
    whole, less = (training_memory(config, 4, checkpointing=on).activations for on in (False, True))
    assert 5 < whole / less < 25
    assert inference_memory(config, 4).activations < less
