"""The base of guidance rules. A rule defines the weak velocity, and combines the strong and the weak one."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from mpdit_core.config import ModelConfig
from mpdit_core.settings import Settings

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`network(x_t [B, C, h, w], t [1] or [B], labels [B]) -> velocity [B, C, h, w]`."""


class Pair(NamedTuple):
    """The function that computes strong and weak velocity for the labels of one batch, and its cost."""

    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """`evaluate(x_t, t [1]) -> strong, weak`, both [B, C, h, w] float32."""

    passes: float
    """Number of passes of an image through a network, for strong and weak together."""


class Combine(Protocol):
    """Combines strong and weak velocity [B, C, h, w] float32 at `x_t` and time `t` into one, for the scale `w`.

    The result for an image does not depend on the other images of its batch.
    """

    def __call__(self, strong: Tensor, weak: Tensor, *, w: float, x_t: Tensor, t: float) -> Tensor: ...


class GuidanceRule(Settings):
    """The base of all rules. The fields of a rule are its options."""

    whole_network: ClassVar[bool] = True
    """Whether it only calls the network as a whole, so that the network can be recorded as a CUDA graph."""

    def combine(self) -> Combine:
        """A new combining function for one batch; it may keep values from one evaluation to the next."""
        raise NotImplementedError

    def pair(self, network: Network, labels: Tensor, null_label: int) -> Pair:
        """Strong with the label, weak with the null label, in one batched pass."""
        both_labels = torch.cat([labels, torch.full_like(labels, null_label)])

        def evaluate(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            strong, weak = network(torch.cat([x_t, x_t]), t, both_labels).float().chunk(2)
            return strong, weak

        return Pair(evaluate, passes=2)

    def is_zero_at(self, t: float) -> bool:  # noqa: ARG002
        """Whether the velocity is 0 at time `t`, without an evaluation of the network."""
        return False

    def require_fit(self, config: ModelConfig, *, guided_by_model: bool) -> None:
        """Raises `UserError` if the rule cannot be used with this network, or together with a guide."""


def pair_with_guide(network: Network, guide: Network, labels: Tensor) -> Pair:
    """Autoguidance: strong is the network, weak the guide, both with the label."""

    def evaluate(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return network(x_t, t, labels).float(), guide(x_t, t, labels).float()

    return Pair(evaluate, passes=2)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each image's values, [B, 1, 1, 1]."""
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def projection_coefficient(vector: Tensor, *, onto: Tensor) -> Tensor:
    """The number c per image, [B, 1, 1, 1], for which `c·onto` is closest to `vector`; 0 where `onto` is 0."""
    return dot(vector, onto) / dot(onto, onto).clamp_min(1e-30)
