"""Guidance `skip-tokens`: the weak velocity is from the same network, with no class tokens in its last stage.

Both velocities share the coarse stages, which see the class tokens. The last stage is computed twice: as trained, and
on the image tokens alone, which know the class from the coarse stages only. The rule is not from a paper. Related:
autoguidance by a weaker model (arXiv 2406.02507), and perturbed attention in the same model (arXiv 2403.17377).
"""

from __future__ import annotations

from torch import Tensor

from mpdit_core.config import ModelConfig
from mpdit_core.errors import UserError
from mpdit_core.flow.guidance.cfg import extrapolate
from mpdit_core.flow.guidance.rule import Combine, GuidanceRule, Network, Pair
from mpdit_core.model.compute import forward_macs, skip_tokens_macs
from mpdit_core.model.transformer import MPDiT


class SkipTokens(GuidanceRule):
    """Guidance away from the network whose last stage has no class tokens. One pass, and a part of another."""

    whole_network = False

    def combine(self) -> Combine:
        return extrapolate

    def pair(self, network: Network, labels: Tensor, null_label: int) -> Pair:  # noqa: ARG002
        assert isinstance(network, MPDiT), "its stages are called one by one"
        model = network

        def evaluate(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            class_tokens, tokens, cond, shared = model.coarse_stages(x_t, t, labels)
            strong = model.last_stage(x_t, t, class_tokens, tokens, cond, shared)
            weak = model.last_stage(x_t, t, class_tokens[:, :0], tokens, cond, shared)
            return strong.float(), weak.float()

        return Pair(evaluate, passes=1 + skip_tokens_macs(model.config) / forward_macs(model.config))

    def require_fit(self, config: ModelConfig, *, guided_by_model: bool) -> None:
        if not config.class_tokens:
            raise UserError(
                "guidance skip-tokens with a model that has no class tokens",
                code="no-class-tokens",
                expected="a model with class tokens",
                remedy="--guidance cfg",
            )
        if guided_by_model:
            raise UserError(
                "guidance skip-tokens cannot be combined with a guide",
                code="conflicting-options",
                expected="one weak velocity: from the guide, or from the same model without class tokens",
                remedy="leave --guide out, or use --guidance cfg",
            )
