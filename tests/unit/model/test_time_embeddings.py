"""A time embedding is one file: found by its name, trained, counted, and never imported to read a configuration."""

from __future__ import annotations

import pytest
import torch
from data_helpers import refused

from mpdit_core.config import ModelConfig, Stage, time_embedding_names
from mpdit_core.model import time_embeddings
from mpdit_core.model.compute import count
from mpdit_core.model.memory import saved_activations
from mpdit_core.model.time_embedding_cost import measure
from mpdit_core.model.transformer import MPDiT
from mpdit_core.settings import validate
from mpdit_core.size import Size

OURS = """
from torch import nn

class TimeEmbedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(1, width)

    def forward(self, t):
        return self.linear(t[:, None])

    def initialize(self, *, spectral_scale):
        nn.init.ones_(self.linear.weight)
"""


def config(name: str) -> ModelConfig:
    shape = dict(width=16, num_heads=2, stages=[[2, 1]], input_size=4, time_embedding=name)
    return validate(ModelConfig, shape)


def test_one_file_is_all_it_takes(tmp_path):
    (tmp_path / "straight.py").write_text(OURS)
    time_embeddings.__path__.append(str(tmp_path))
    try:
        assert {"fno", "sinusoid", "straight"} <= set(time_embedding_names())
        model = MPDiT(config("straight"))
        assert model(torch.zeros(2, 4, 4, 4), torch.ones(2), torch.zeros(2, dtype=torch.long)).shape == (2, 4, 4, 4)
        assert torch.equal(model.get_parameter("time_embedding.linear.weight"), torch.ones(16, 1))
        counted = count(config("straight"))
        assert counted.parameters == sum(p.numel() for p in model.parameters())
        assert counted.by_kind["time"] == 16
        assert saved_activations(config("straight")) > saved_activations(config("sinusoid"))
    finally:
        time_embeddings.__path__.remove(str(tmp_path))
    with refused("invalid-value"):
        config("straight")


@pytest.mark.parametrize("name", ["fno", "sinusoid"])
def test_measuring_agrees_with_the_closed_formulas(name: str):
    measured = measure(name, 16)
    counted = count(config(name))
    assert (measured.macs, measured.parameters) == (counted.by_kind["time"], counted.parameters_by_kind["time"])


def test_a_model_beyond_memory_is_refused_at_once():
    huge = {"width": 2**40}, {"num_classes": 2**40}, {"stages": (Stage(2, 2**40),)}, {"input_size": Size.square(2**40)}
    for values in huge:
        with refused("too-large"):
            MPDiT(config("fno").model_copy(update=values))
