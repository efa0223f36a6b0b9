"""The step of a trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from mpdit_core.config import RunConfig
from mpdit_core.presets import load_preset
from mpdit_core.runtime.distributed import World
from mpdit_core.settings import merge, validate
from mpdit_core.training.batches import Batch
from mpdit_core.training.state import trainer as state_trainer
from mpdit_core.training.state.trainer import Trainer


@pytest.mark.parametrize("wanted", [True, False])
def test_a_step_is_deterministic_if_the_settings_say_so(monkeypatch, wanted):
    entered: list[torch.device] = []

    @contextmanager
    def enter(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(state_trainer, "deterministic", enter)
    config = load_preset("tiny").model_dump()
    config = validate(RunConfig, merge(config, {"train": {"batch_size": 4, "deterministic": wanted}}))
    trainer = Trainer(config, total_steps=1, device=torch.device("cpu"), world=World())
    trainer.step(Batch(torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16), torch.rand(4), torch.arange(4)))
    assert entered == [torch.device("cpu")] * wanted
