"""Embedding of the class: labels [B] -> class tokens [B, M, D]; without class tokens one vector (M = 1) for `cond`."""

from __future__ import annotations

from torch import Tensor, nn


class ClassEmbedding(nn.Module):
    """A table with one row per class and one for the null label; a row is M tokens side by side."""

    def __init__(self, *, num_classes: int, class_tokens: int, width: int):
        super().__init__()
        self.width = width
        self.table = nn.Embedding(num_classes + 1, class_tokens * width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.table(labels).unflatten(1, (-1, self.width))  # no len(): it would fix the batch size of an export
