"""Time embeddings: from t [B] in [0, 1] to a vector [B, D]. One per file, found by the name of the file.

To add one: a file here (fno.py and sinusoid.py are the examples) with a class `TimeEmbedding(nn.Module)`:

    TimeEmbedding(width)                     D
    forward(t [B]) -> [B, D]
    initialize(*, spectral_scale: float)     starting values, drawn after those of every linear layer

`--set model.time_embedding=NAME` then finds it. Compute and memory of the two published ones have closed formulas;
those of any other are measured on tensors without data (time_embedding_cost.py).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def time_embedding(name: str, width: int) -> nn.Module:
    """The time embedding called `name`, a value of `ModelConfig.time_embedding`, with D = `width`."""
    return importlib.import_module(f"{__name__}.{name}").TimeEmbedding(width)
