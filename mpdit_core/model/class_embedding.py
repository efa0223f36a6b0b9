"""Embedding of the class: labels [B] -> class tokens [B, M, D]; one vector where classes are not tokens (M = 1)."""

from __future__ import annotations

from torch import Tensor, nn


class ClassEmbedding(nn.Module):
    """One table row a class and one for the null label; a row is M tokens side by side. labels [B] -> [B, M, D]."""

    def __init__(self, *, num_classes: int, class_tokens: int, width: int):
        super().__init__()
        self.width = width
        self.table = nn.Embedding(num_classes + 1, class_tokens * width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.table(labels).unflatten(1, (-1, self.width))  # no len(): it would fix an exported batch
