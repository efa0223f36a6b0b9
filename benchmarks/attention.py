"""Speed of attention in a training step, forward and backward: ours in bfloat16 on a CPU, against torch's own kernels.

    python benchmarks/attention.py
    python benchmarks/attention.py --heads 16 --head-width 72

The longest sequence is the longest one with a backward pass of our own; longer ones use torch's kernels alone. The two
take turns, and the median counts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from report import seconds_in_turns, write_result
from torch import Tensor

from mpdit_core.model.attention import MAX_TOKENS, attend
from mpdit_core.runtime.device import select_device

LENGTHS = (80, 272, MAX_TOKENS)  # tokens; 80 and 272 are those of the stages of b-256
TOKENS = 4352  # of all sequences together: 16 of 272
TURNS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-width", type=int, default=64)
    arguments = parser.parse_args()
    select_device("cpu")
    rows = [compare(length, arguments.heads, arguments.head_width) for length in LENGTHS]
    print(write_result("attention", {"heads": arguments.heads, "head_width": arguments.head_width, "rows": rows}))


def compare(length: int, heads: int, head_width: int) -> dict[str, float]:
    qkv = torch.randn(TOKENS // length, length, 3, heads, head_width, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(len(qkv), heads, length, head_width, dtype=torch.bfloat16)

    def both_passes(attention: Callable[..., Tensor]) -> None:
        qkv.grad = None
        attention(*(part.transpose(1, 2) for part in qkv.unbind(2))).backward(gradient)

    works = {"ours": lambda: both_passes(attend), "torch": lambda: both_passes(F.scaled_dot_product_attention)}
    taken = seconds_in_turns(works, TURNS, device=torch.device("cpu"))
    now, before = statistics.median(taken["ours"]), statistics.median(taken["torch"])
    print(
        f"{length:>5} tokens: {1000 * now:6.1f} ms, torch's own kernels {1000 * before:6.1f} ms: {before / now:.2f} ×"
    )
    return {"tokens": length, "sequences": len(qkv), "seconds": now, "torch_seconds": before, "ratio": before / now}


if __name__ == "__main__":
    main()
