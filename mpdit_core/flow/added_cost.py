"""The extra cost of a loss over flow matching alone: parameters, and MACs per image of a training step.

Both are counted while the real modules run on tensors without data. `mpdit profile-flops --set objective.…` shows them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mpdit_core.config import FLOW_MATCHING, ModelConfig, RunConfig
from mpdit_core.flow.loss import Terms, TrainingLoss, build_terms, needs, random_batch
from mpdit_core.model.transformer import without_values

TEACHER_FEATURES = 768  # F of DINOv2-B: without latents the teacher is not known


def added_cost(run: RunConfig, *, trusted: Callable[[str], bool]) -> tuple[int, int]:
    """(parameters, MACs per image of a step) that the run's objective adds to flow matching alone.

    Raises:
        UserError: as `build_terms`.
    """
    terms = build_terms(run.objective, trusted=trusted)
    macs, parameters = _counted(run.model, terms)
    return parameters, macs - _counted(run.model, build_terms({FLOW_MATCHING: {}}))[0]


def _counted(model: ModelConfig, terms: Terms) -> tuple[int, int]:
    """(MACs of a forward and backward pass of one image, parameters of the terms' own modules)."""
    with FakeTensorMode():
        loss = TrainingLoss(without_values(model), terms, teacher_features=TEACHER_FEATURES)
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:  # every torch counts this backend's products alike
            loss(random_batch(model, needs(terms), images=1, teacher_features=TEACHER_FEATURES))[0].backward()
    return counter.get_total_flops() // 2, sum(p.numel() for p in loss.term_modules.parameters())
