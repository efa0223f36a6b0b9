"""benchmarks/gpu.py on the CPU, at the smallest sizes, so that its mistakes are not found on a GPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(tmp_path, monkeypatch) -> ModuleType:
    """The benchmark, with results in a folder of the test, and compiling for the CPU."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "helpers"))
    monkeypatch.setattr(importlib.import_module("report"), "RESULTS", tmp_path)
    compile_module = nn.Module.compile

    def capture(module: nn.Module, **options: Any) -> None:
        compile_module(module, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", capture)
    torch._dynamo.reset()
    return importlib.import_module("gpu")


def run(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny", *arguments])
    gpu.main()
    (written,) = folder.glob("*-gpu.json")
    return json.loads(written.read_text(encoding="utf-8"))["pieces"]


def test_every_piece_of_the_gpu_benchmark_runs(gpu, tmp_path, monkeypatch):
    found = run(gpu, monkeypatch, tmp_path)
    assert [name for name, values in found.items() if "failed" in values] == []
    assert all("package" in values["skipped"] for values in found.values() if "skipped" in values)
    assert all(found["right: resume"][f"bit-equal, compile {mode}"] for mode in ("off", "on"))
    assert found["right: one process of a group"]["right"]
    differences = found["right: types and compiling"]
    assert differences["float32 compile on"] < 1e-5 < differences["bfloat16 compile on"] < 0.1
    assert found["train tiny compiled"]["images_per_second"] > 0
    assert found["profile of the slowest"]["of"].startswith("train")


def test_what_does_not_fit_or_fails_is_named_and_the_rest_runs(gpu, tmp_path, monkeypatch):
    def fail(session: object) -> dict[str, Any]:
        raise RuntimeError("no")

    def lack(session: object) -> dict[str, Any]:
        raise ModuleNotFoundError("none", name="diffusers")

    monkeypatch.setattr(gpu, "resume", fail)
    monkeypatch.setattr(gpu, "group_of_one", lack)
    found = run(gpu, monkeypatch, tmp_path, "--only", "right: ")
    assert found["right: resume"] == {"failed": "RuntimeError: no"}
    assert found["right: one process of a group"] == {"skipped": "the package diffusers is not installed"}
    piece = gpu.Piece("train", 40.0, dict)
    assert "skipped" in gpu.attempt(piece, left=39.0, tiny=False)
    assert "took" in gpu.attempt(piece, left=41.0, tiny=False)
