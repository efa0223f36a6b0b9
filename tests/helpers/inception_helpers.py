"""Random weights for the real Inception network, which need no download."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch


def write_random_weights(path: Path) -> Path:
    """A state dict of random values in the file format that torch-fidelity loads.

    They are scaled so that activations keep their size through the layers (He et al. 2015). With torch's own
    initialisation features are about 1e-7, and every distance is 0.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    caught: dict[str, torch.Tensor] = {}

    class Catch(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, *args, **kwargs) -> Any:
            caught.update(self.state_dict())

    box = io.BytesIO()
    torch.save({}, box)
    box.seek(0)
    Catch("inception", ["2048"], box)
    for name, value in caught.items():
        if name.endswith("conv.weight"):
            value.normal_(std=(2 / value[0].numel()) ** 0.5)
        elif name.endswith("bn.bias"):
            value.normal_(std=0.1)
        elif name == "fc.weight":
            value.normal_(std=0.3)
    torch.save(caught, path)
    return path
