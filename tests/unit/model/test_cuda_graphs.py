"""CUDA graphs: recorded once per shape, with the numbers of the function. On a CPU, recordings compute again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from data_helpers import refused
from sample_helpers import QUICK, write_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mpdit_core.config import Compile, RunConfig, TrainConfig
from mpdit_core.model import cuda_graphs
from mpdit_core.model.cuda_graphs import Recorded, RecordedNetwork
from mpdit_core.presets import load_preset
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World
from mpdit_core.sampling import Generator, SamplingOptions, generator
from mpdit_core.settings import merge, validate
from mpdit_core.training.batches import Batch
from mpdit_core.training.state.recorded_gradients import require_recordable
from mpdit_core.training.state.trainer import Trainer

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]


class Recomputed:
    """In place of a recording: computes again from its own inputs, and writes the result where it was."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor], pool: object):
        self.function, self.inputs = function, [x.clone() for x in inputs]
        for _ in range(cuda_graphs.WARM_UPS):
            function(*self.inputs)
        self.output = function(*self.inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        tree_map(Tensor.copy_, self.inputs, list(inputs))
        kept = [tensor for tensor in tree_leaves(self.output) if tensor is not None]
        new = [tensor for tensor in tree_leaves(self.function(*self.inputs)) if tensor is not None]
        for old, fresh in zip(kept, new, strict=True):
            old.detach().copy_(fresh.detach())
            fresh.detach().fill_(torch.nan)  # a replay makes no new tensors
        return self.output


@pytest.fixture
def device(request, monkeypatch) -> torch.device:
    if request.param == "cpu":
        monkeypatch.setattr(cuda_graphs, "_Graph", Recomputed)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", tuple)
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # one block at a time, as on a GPU
    return select_device(request.param)


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_one_recording_for_each_shape_type_and_mode_with_the_functions_numbers(device):
    calls: list[tuple[object, ...]] = []

    def function(x: Tensor, y: Tensor) -> Tensor:
        calls.append((*x.shape, x.dtype, torch.is_inference_mode_enabled()))
        return x * y + 1

    recorded = Recorded(function)
    for shape in ((2, 3), (4,), (2, 3)):
        for dtype in (torch.float32, torch.float64):
            for mode in (True, False):
                with torch.inference_mode(mode):
                    x, y = (torch.rand(shape, device=device, dtype=dtype) for _ in range(2))
                    assert torch.equal(recorded(x, y), x * y + 1)
    assert len(set(calls)) == len(recorded._graphs) == 2 * 2 * 2
    if device.type == "cuda":
        assert len(calls) == 8 * (cuda_graphs.WARM_UPS + 1)  # replays do not call the function
    first, again = recorded(x, y), recorded(y, y)
    assert first.data_ptr() == again.data_ptr()


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_the_recordings_that_came_last_are_kept(device):
    recorded = Recorded(torch.neg)
    for length in range(1, cuda_graphs.MAX_RECORDINGS + 4):
        recorded(torch.zeros(length, device=device))
    assert len(recorded._graphs) == cuda_graphs.MAX_RECORDINGS


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_a_recorded_network_is_evaluated_in_any_thread_and_has_gradients_where_they_are_wanted(device, tmp_path):
    network = write_model(tmp_path / "model").load(device)
    recorded = RecordedNetwork(network)
    t, labels = torch.tensor([0.5], device=device), torch.tensor([1, 2], device=device)
    given = [torch.randn(2, 1, 16, 16, device=device) for _ in range(40)]
    with torch.inference_mode():
        expected = [network(x_t, t, labels) for x_t in given]

    def evaluate(x_t: Tensor) -> Tensor:
        with torch.inference_mode():
            return recorded(x_t, t, labels)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(evaluate, given))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    x_t = given[0].requires_grad_()
    (gradient,) = torch.autograd.grad(recorded(x_t, t, labels).sum(), x_t)
    assert gradient.any()


def trainer(device: torch.device, **train: Any) -> Trainer:
    config = load_preset("tiny").model_dump()
    values = {"batch_size": 4, "precision": "float32"} | train
    return Trainer(validate(RunConfig, merge(config, {"train": values})), total_steps=4, device=device, world=World())


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_a_recorded_step_is_the_step(device, monkeypatch):
    """Bit for bit, losses kept from one step to the next, and a restored trainer continues."""
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: None)
    plain, recorded = trainer(device, compile="off"), trainer(device, compile="graphs")
    torch.manual_seed(0)
    batches = [
        Batch(torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16), torch.rand(4), torch.arange(4)).to(device)
        for _ in range(4)
    ]
    expected = [plain.step(batch)["loss"] for batch in batches]
    losses = [recorded.step(batch)["loss"] for batch in batches[:2]]
    recorded.restore(recorded.state())
    losses += [recorded.step(batch)["loss"] for batch in batches[2:]]
    assert [loss.item() for loss in losses] == [loss.item() for loss in expected]
    assert len({loss.item() for loss in losses}) == 4
    weights = recorded.model.weights()
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.model.weights().items())


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_images_of_recorded_networks_are_the_images(device, tmp_path, monkeypatch):
    """A sampler that keeps velocities, guided and not, a guide, and a last block that is smaller."""
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: None)
    monkeypatch.setattr(generator, "require_cuda_graphs", lambda device, remedy: None)
    model, guide = write_model(tmp_path / "model"), write_model(tmp_path / "guide", seed=1)
    options = QUICK | {"sampler": "adams-bashforth-3", "guidance_interval": (0.3, 0.8), "precision": "float32"}
    for more in ({}, {"guide": str(guide.path)}):

        def latents(compile: Compile, more: dict[str, Any] = more) -> Tensor:
            chosen = SamplingOptions(**options | more, compile=compile)
            made = Generator(model, chosen, device=device, num_samples=10, decode=False)
            return torch.cat([batch.latents for batch in made.batches()])

        assert torch.equal(latents("graphs"), latents("off"))


@pytest.mark.parametrize(
    ("changes", "world", "code"),
    [
        ({}, World(), None),
        ({"accumulation": 2}, World(), "conflicting-options"),
        ({}, World(size=2), "conflicting-options"),
    ],
)
def test_steps_that_cannot_be_recorded_are_refused(changes, world, code):
    train = TrainConfig(compile="graphs", **changes)
    with refused(code) if code else nullcontext():
        require_recordable(train, torch.device("cuda"), world)
    with refused("no-cuda-graphs"):
        require_recordable(train, torch.device("cpu"), world)
    require_recordable(TrainConfig(accumulation=2), torch.device("cpu"), world)
