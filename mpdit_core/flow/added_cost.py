"""What the terms of a loss add to flow matching: parameters, and MACs per image of a training step.

Both are counted while the real modules run on tensors without data, less what flow matching alone takes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mpdit_core.config import FLOW_MATCHING, ModelConfig, RunConfig
from mpdit_core.flow.loss import Terms, TrainingLoss, build_terms, needs, random_batch
from mpdit_core.model.transformer import without_values

TEACHER_FEATURES = 768  # F of DINOv2-B, as there are no latents here that state it


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
            loss(random_batch(model, needs(terms), images=1, teacher_features=TEACHER_FEATURES))[0].backward()
    return counter.get_total_flops() // 2, sum(p.numel() for p in loss.trained_beside.parameters())
