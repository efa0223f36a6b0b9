"""What `auto` means: chosen by measured times, once per process and size; float32 for small networks, unmeasured."""

from __future__ import annotations

import time

import pytest
import torch
from data_helpers import refused
from torch import Tensor

from mpdit_core.config import ModelConfig
from mpdit_core.presets import load_preset
from mpdit_core.runtime import precision
from mpdit_core.runtime.precision import choose_dtype, fastest_that_agrees, measured_seconds

CPU = torch.device("cpu")
WIDE = load_preset("b-256").model
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def seconds(monkeypatch) -> dict[torch.dtype, float]:
    """The times that a measurement finds, for tests to set."""
    found = {F32: 1.0, BF16: 1.0}
    monkeypatch.setattr(precision, "measured_seconds", lambda device, *sizes: found)
    return found


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.34, BF16), (0.9, BF16), (0.92, F32), (1.0, F32), (3.0, F32)])
def test_bfloat16_where_it_saves_more_than_a_tenth(seconds, bfloat16, chosen):
    seconds[BF16] = bfloat16
    assert choose_dtype("auto", CPU, WIDE) == chosen


def test_what_is_asked_for_is_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "measured_seconds", None)
    assert choose_dtype("float32", CPU, WIDE) == F32
    assert choose_dtype("bfloat16", CPU, WIDE) == BF16
    assert choose_dtype("auto", CPU, narrow(64)) == F32


def narrow(width: int) -> ModelConfig:
    return WIDE.model_copy(update={"width": width, "num_heads": 2})


def test_the_models_own_sizes_are_measured(monkeypatch):
    asked: list[tuple[int, ...]] = []

    def measure(device: torch.device, *sizes: int) -> dict[torch.dtype, float]:
        asked.append(sizes)
        return {F32: 2.0, BF16: 1.0}

    monkeypatch.setattr(precision, "measured_seconds", measure)
    assert choose_dtype("auto", CPU, WIDE) == BF16
    assert choose_dtype("auto", CPU, narrow(128)) == BF16
    assert asked == [(768, 16 + 256, 12), (128, 16 + 256, 2)]


def test_a_measurement_is_made_once_and_leaves_no_trace():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = measured_seconds(CPU, 32, 16, 2)
    assert first is measured_seconds(CPU, 32, 16, 2)
    assert all(0 < value < 60 for value in first.values())
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.is_autocast_enabled("cpu")


SECONDS = {"float32": 1.0, "tf32": 0.5, "bfloat16": 0.25}
VALUES = {"float32": 0.0, "tf32": 0.001, "bfloat16": 0.1}


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that only `compute` moves."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("limit", "candidates", "chosen"),
    [
        (1.0, ("tf32", "bfloat16"), "bfloat16"),
        (0.01, ("tf32", "bfloat16"), "tf32"),
        (0.0001, ("tf32", "bfloat16"), "float32"),
        (0.01, ("bfloat16",), "float32"),
    ],
)
def test_the_fastest_that_agrees(clock, limit, candidates, chosen):
    def compute(name: str) -> Tensor:
        clock[0] += SECONDS[name]
        return torch.tensor(VALUES[name])

    found = fastest_that_agrees(candidates, compute, difference=lambda a, b: abs(a - b).item(), limit=limit)
    assert found == chosen


@pytest.mark.parametrize(("gain", "chosen"), [(1.1, "float32"), (0.0, "bfloat16")])
def test_one_that_is_slower_is_taken_only_at_any_speed(clock, gain, chosen):
    def compute(name: str) -> Tensor:
        clock[0] += 1.0 if name == "float32" else 2.0
        return torch.zeros(1)

    found = fastest_that_agrees(["bfloat16"], compute, difference=lambda a, b: 0.0, limit=1.0, min_gain=gain)
    assert found == chosen


def test_one_that_is_not_finite_is_not_taken(clock):
    def compute(name: str) -> Tensor:
        clock[0] += SECONDS[name]
        return torch.tensor(0.0 if name == "float32" else float("nan"))

    difference = lambda a, b: (a - b).abs().max().item()  # noqa: E731
    assert fastest_that_agrees(["bfloat16"], compute, difference=difference, limit=1.0) == "float32"


def test_a_precision_that_the_device_lacks_is_refused():
    assert precision.require("bfloat16", CPU) == "bfloat16"
    with refused("no-such-precision"):
        precision.require("tf32", CPU)
