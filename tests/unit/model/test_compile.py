"""Compiled networks: as many graphs as a job needs, one for all times, and the numbers of the eager network."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sample_helpers import fill_zero_parameters, make_generator, write_model
from torch import nn
from torch._dynamo.utils import counters

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.model import transformer
from mpdit_core.model.transformer import MPDiT
from mpdit_core.runtime.precision import autocast
from mpdit_core.size import Size

CPU = torch.device("cpu")
SMALL = ModelConfig(
    width=32, num_heads=2, stages=(Stage(4, 1), Stage(2, 1), Stage(1, 1)), input_size=Size.square(8), channels=1,
    num_classes=4, class_tokens=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graphs and no counts of other tests."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def quick(monkeypatch) -> None:
    """torch.compile captures graphs as always, and runs them as they are."""
    compile_module = nn.Module.compile

    def capture(module: nn.Module, **options: Any) -> None:
        compile_module(module, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", capture)


def network(config: ModelConfig = SMALL) -> MPDiT:
    torch.manual_seed(0)
    made = MPDiT(config)
    fill_zero_parameters(made, std=0.1)
    return made


def inputs(batch: int, times: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 1, 8, 8), torch.full((times,), 0.5), torch.arange(batch) % 4


def assert_all_compiled() -> None:
    assert counters["frames"]["total"] == counters["frames"]["ok"] > 0
    assert not counters["unimplemented"]
    assert not counters["graph_break"]


@pytest.mark.usefixtures("quick")
def test_no_block_of_a_job_falls_back_to_eager():
    """Training with accumulation, previews and evaluation: guided and not, last blocks smaller; 3 stages."""
    model = network()
    model.compile_blocks()

    def everything() -> None:
        for batch in (4, 8, 3):
            model(*inputs(batch, batch)).sum().backward()
            with torch.no_grad():
                model(*inputs(batch, 1))
                model(*inputs(batch, batch))

    thread = threading.Thread(target=everything)  # as blocks of samples are: torch's configuration is each thread's own
    thread.start()
    thread.join()
    assert 8 < counters["stats"]["unique_graphs"] <= transformer.MAX_COMPILED
    assert_all_compiled()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_one_graph_for_all_times(tmp_path, precision, bound):
    """The time reaches the compiled network as a tensor: steps, at other times each, make no new graph."""
    options = {"precision": precision, "sampler": "heun", "num_steps": 7, "guidance_interval": (0.2, 0.7)}
    made = make_generator(write_model(tmp_path / "model"), **options)

    def sampled() -> torch.Tensor:
        return made.integrate(made.velocity([0, 1]), *made.noise([0, 1]))

    eager = sampled()
    made.network.compile_blocks()
    torch.testing.assert_close(sampled(), eager, rtol=0, atol=bound)
    assert counters["stats"]["unique_graphs"] == 4  # of two stages, guided and not
    assert_all_compiled()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_and_eager_agree():
    """Velocities in both types, and float32's gradients, by torch's own compiler, relative to their size."""
    eager, compiled = (network(SMALL.model_copy(update={"stages": (Stage(2, 1),)})) for _ in range(2))
    compiled.compile_blocks()
    given = inputs(4, 1)
    results = []
    for model in (eager, compiled):
        velocity = model(*given)
        gradients = torch.autograd.grad(velocity.square().mean(), list(model.parameters()))
        with torch.no_grad(), autocast(CPU, torch.bfloat16):
            results.append((velocity.detach(), torch.cat([g.flatten() for g in gradients]), model(*given).float()))
    for (ours, theirs), bound in zip(zip(*results, strict=True), (1e-5, 1e-5, 2e-2), strict=True):
        assert ((ours - theirs).norm() / ours.norm()).item() < bound
