"""What a guidance rule is: where the weak velocity comes from, and how strong and weak become one velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mpdit_core.config import ModelConfig
from mpdit_core.settings import Settings

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`network(x_t [B, C, h, w], t [1] or [B], labels [B]) -> velocity [B, C, h, w]`."""


class Pair(NamedTuple):
    """Where strong and weak come from, bound to the labels of a batch."""

    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """`evaluate(x_t, t [1]) -> strong, weak`, both [B, C, h, w] float32."""

    passes: float
    """Cost of both: number of passes of an image through a network."""


class Combine(Protocol):
    """Combines strong and weak velocity [B, C, h, w] float32 at `x_t` and time `t` into one, for the scale `w`.

    The result for an image does not depend on the other images of its batch.
    """

    def __call__(self, strong: Tensor, weak: Tensor, *, w: float, x_t: Tensor, t: float) -> Tensor: ...


class GuidanceRule(Settings):
    """The base of all rules. The fields of a rule are its options."""

    def combine(self) -> Combine:
        """The function for one batch, which may keep values from one evaluation to the next."""
        raise NotImplementedError

    def pair(self, network: Network, labels: Tensor, null_label: int) -> Pair:
        """Strong with the label, weak with the null label, in one batched pass."""
        both_labels = torch.cat([labels, torch.full_like(labels, null_label)])

        def evaluate(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            strong, weak = velocity_of(network, torch.cat([x_t, x_t]), t, both_labels).chunk(2)
            return strong, weak

        return Pair(evaluate, passes=2)

    def is_zero_at(self, t: float) -> bool:  # noqa: ARG002
        """Whether the velocity is 0 at time `t`, without an evaluation of the network."""
        return False

    def require_fit(self, config: ModelConfig, *, guided_by_model: bool) -> None:
        """Raises `UserError` where the rule does not fit the network, or a second model that guides it."""


def velocity_of(network: Network, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The velocity in float32, copied: a CUDA graph overwrites its output at the next evaluation."""
    return network(x_t, t, labels).to(torch.float32, copy=True)


def pair_with_guide(network: Network, guide: Network, labels: Tensor) -> Pair:
    """Autoguidance: strong is the network, weak the guide, both with the label."""

    def evaluate(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return velocity_of(network, x_t, t, labels), velocity_of(guide, x_t, t, labels)

    return Pair(evaluate, passes=2)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each image's values, [B, 1, 1, 1]."""
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def coefficient(of: Tensor, on: Tensor) -> Tensor:
    """The number c [B, 1, 1, 1] per image for which `c·on` is closest to `of`; 0 where `on` is 0."""
    return dot(of, on) / dot(on, on).clamp_min(1e-30)
