"""Reads tests/golden/: what the official implementation computes for small random weights (float32, CPU)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from mpdit_core.interop.official.names import convert_state_dict
from mpdit_core.model.transformer import MPDiT

FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.safetensors"))
TOLERANCE = 2e-5  # relative to the largest value


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The official constructor's arguments, and all tensors of the file."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        return json.loads(file.metadata()["config"]), tensors


def official_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix("weights."): v for n, v in tensors.items() if n.startswith("weights.")}


def load_model(path: Path) -> tuple[MPDiT, dict[str, Tensor]]:
    """(mpdit's model with the file's weights, the file's tensors)."""
    arguments, tensors = read(path)
    config, state = convert_state_dict(official_weights(tensors), num_heads=arguments["num_heads"])
    model = MPDiT(config)
    model.load_state_dict(state)
    return model.eval(), tensors


def assert_close(actual: Tensor, golden: Tensor) -> None:
    error = (actual - golden).abs().max() / golden.abs().max()
    assert error < TOLERANCE, f"relative error {error:.2e}"
