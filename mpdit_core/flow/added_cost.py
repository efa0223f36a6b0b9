"""What the terms of a loss add to training beside flow matching: parameters, and work per image of a step.

Counted, not derived: a step of the real modules on tensors without data, less one of flow matching alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mpdit_core.api import TrainingBatch
from mpdit_core.config import FLOW_MATCHING, ModelConfig, RunConfig
from mpdit_core.flow.loss import Terms, TrainingLoss, build_terms, needs, network_shape
from mpdit_core.model.transformer import without_values

TEACHER_FEATURES = 768  # F of DINOv2-B, as no latents say here how many they hold


def added_cost(run: RunConfig, *, trusted: Callable[[str], bool]) -> tuple[int, int]:
    """Parameters, and MACs per image of a step, of the run's objective beyond flow matching alone.

    Raises:
        UserError: as `build_terms`.
    """
    terms = build_terms(run.objective, trusted=trusted)
    macs, parameters = _counted(run.model, terms)
    return parameters, macs - _counted(run.model, build_terms({FLOW_MATCHING: {}}))[0]


def _counted(model: ModelConfig, terms: Terms) -> tuple[int, int]:
    """MACs of a forward and backward pass of one image, and parameters trained beside the network."""
    with FakeTensorMode():
        loss = TrainingLoss(without_values(model), terms, teacher_features=TEACHER_FEATURES)
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:  # whose products torch counts the same in every version
            loss(_batch(model, terms))[0].backward()
    return counter.get_total_flops() // 2, sum(p.numel() for p in loss.trained_beside.parameters())


def _batch(model: ModelConfig, terms: Terms) -> TrainingBatch:
    """One image."""
    shape = (1, model.channels, *model.input_size)
    rows, columns = network_shape(model).token_grid or (0, 0)
    teacher = torch.empty(1, rows * columns, TEACHER_FEATURES)
    return TrainingBatch(
        latents=torch.empty(shape),
        noise=torch.empty(shape),
        t=torch.empty(1),
        labels=torch.zeros(1, dtype=torch.long),
        negative=torch.empty(shape) if "negative" in needs(terms) else None,
        teacher=teacher if "teacher" in needs(terms) else None,
    )
