"""Which code wrote an official checkpoint, and how its tensors are converted for our flow.

The tensors have the same names in all three codes, but the output differs:

    mpdit  velocity noise − data at t (1 noise, 0 data), as ours
    dit    the noise itself (epsilon) and a variance, at diffusion steps 0..999: not a flow, cannot be sampled here
    sit    velocity data − noise at s = 1 − t, and an unused variance: ours(x, t) = −theirs(x, 1 − t)

Sources: DiT (arXiv 2212.09748), SiT (arXiv 2401.08740, section 3.1, linear path).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mpdit_core.errors import UserError
from mpdit_core.model.time_embeddings.sinusoid import TimeEmbedding as SinusoidTimeEmbedding

Kind = Literal["mpdit", "dit", "sit"]

OUTPUT = ("final_layer.linear.weight", "final_layer.linear.bias")
FIRST_TIME_LAYER = "t_embedder.mlp.0.weight"


def detect_kind(official: Mapping[str, Tensor], *, name: str, arguments: Mapping[str, Any]) -> Kind:
    """The code that wrote `official`, from its tensors, the file's name and the stored training arguments.

    The releases of DiT and SiT have variance channels. A dense transformer without them is one of these two only if its
    arguments, or for SiT its name, say so; otherwise it is a dense baseline of the MPDiT code, which is a flow.

    Raises:
        UserError: two kinds remain possible (`ambiguous-kind`).
    """
    if "blocks.0.adaLN_modulation.1.weight" not in official:
        return "mpdit"
    trained = str(arguments.get("model", ""))
    if re.match(r"sit\b|sit[-_]", trained, re.IGNORECASE) or "path_type" in arguments:
        return "sit"
    if trained.lower().startswith("dit"):
        return "dit"
    words = re.split(r"[^a-z]+", name.lower())
    named: Kind | None = "dit" if "dit" in words else "sit" if "sit" in words else None
    if named and (named == "sit" or has_variance(official)):
        return named
    if named is None and not has_variance(official):
        return "mpdit"
    kinds, why = ("dit", "sit"), "their tensors have the same names and shapes"
    if named:
        kinds, why = ("dit", "mpdit"), "DiT without variance predicts noise, MPDiT's dense baselines velocity"
    raise UserError(
        f"{name} may be {' or '.join(kinds)}: {why}, and nothing else in the file shows which",
        code="ambiguous-kind",
        expected="a file name or stored arguments that show which",
        remedy=f"--kind {kinds[0]}, or --kind {kinds[1]}",
    )


def has_variance(official: Mapping[str, Tensor]) -> bool:
    """Whether the output has twice the input's channels."""
    weight, patches = official.get(OUTPUT[0]), official.get("x_embedder.proj.weight")
    if weight is None or patches is None or patches.ndim != 4 or "blocks.0.attn.qkv.weight" not in official:
        return False
    return weight.shape[0] == 2 * math.prod(patches.shape[1:])


def drop_variance(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keeps the first half of the output channels: rows of the last layer read as (p, p, 2C)."""
    changed = dict(official)
    _, channels, p, _ = official["x_embedder.proj.weight"].shape
    for name in OUTPUT:
        rows = official[name].unflatten(0, (p, p, 2 * channels))[:, :, :channels]
        changed[name] = rows.flatten(0, 2)
    return changed


def reverse_time(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `−model(x, 1 − t)`, exactly.

    The output layer is negated. The time embedding depends on t only through cos(t·f) and sin(t·f), and
    cos((1−t)f) = cos f·cos tf + sin f·sin tf,  sin((1−t)f) = sin f·cos tf − cos f·sin tf,
    so reversing time is a linear map of these features, and the first layer absorbs it.
    """
    changed = dict(official)
    for name in OUTPUT:
        changed[name] = -official[name]
    half = SinusoidTimeEmbedding.FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32) / half  # rounded as in the embedding
    f = torch.exp(-math.log(SinusoidTimeEmbedding.MAX_PERIOD) * exponents).double()
    weight = official[FIRST_TIME_LAYER]
    of_cos, of_sin = weight.double().split(half, dim=1)
    reversed_weight = torch.cat([of_cos * f.cos() + of_sin * f.sin(), of_cos * f.sin() - of_sin * f.cos()], dim=1)
    changed[FIRST_TIME_LAYER] = reversed_weight.to(torch.float32)
    return changed
