"""Tensor names and shapes of the official MPDiT, DiT and SiT code become our configuration and state dict.

Official names (facts, read off such checkpoints): `x_embedder` and `x_embedder_skip` / `x_embedder_lvl<i>` (patches),
`t_embedder`, `y_embedder`, `time_modulation` (shared), `downsample_blocks` then `upsample_blocks` (`_lvl<i>`),
`upsampler` / `upsampler_lvl<i>`, `linear_skip` / `linear_skip_lvl<i>`, `final_layer`; a dense DiT has `blocks` alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.errors import UserError
from mpdit_core.settings import validate

HEADS_BY_WIDTH = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of the published models; shapes do not show it

# The parts of a block and of the upsampler, theirs and ours
BLOCK = {
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
    "adaLN_modulation.1": "modulation.linear",
}
UPSAMPLE = {"proj": "expand", "refine": "refine"}


def convert_state_dict(
    official: Mapping[str, Tensor], *, num_heads: int | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Our configuration and state dict for an official one (prefixes already removed).

    Args:
        official: tensors by their official names.
        num_heads: needed only where the width is not that of a published model.

    Raises:
        UserError: the tensors are not those of an MPDiT, DiT or SiT model (`unknown-architecture`), or their width is
            not that of a published model and `num_heads` is not given (`unknown-num-heads`).
    """
    config = infer_config(official, num_heads=num_heads)
    converted: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in official.items():
        if name.startswith("pos_embed"):
            continue  # fixed tables, which the network computes itself
        ours = _our_name(name, stages=len(config.stages))
        if ours is None:
            unknown.append(name)
            continue
        if ours.endswith("patch_embedding.linear.weight"):
            tensor = tensor.flatten(1)  # a convolution of kernel = stride = p as the equal linear map
        elif ".pointwise." in ours and tensor.ndim == 3:
            tensor = tensor.squeeze(-1)  # a 1 × 1 convolution
        converted[ours] = tensor.detach().clone().contiguous()
    if unknown:
        more = " …" if len(unknown) > 5 else ""
        raise _unknown(f"tensors of no known part: {', '.join(unknown[:5])}{more}", "an MPDiT, DiT or SiT checkpoint")
    return config, converted


def infer_config(official: Mapping[str, Tensor], *, num_heads: int | None = None) -> ModelConfig:
    """The configuration that the tensors' names and shapes imply. Raises `UserError` as `convert_state_dict`."""
    width, channels, coarsest, _ = _shape(official, "x_embedder.proj.weight", dimensions=4)
    out_features, _ = _shape(official, "final_layer.linear.weight", dimensions=2)
    rows, class_features = _shape(official, "y_embedder.embedding_table.weight", dimensions=2)
    depths = [depth for depth in (_depth(official, prefix) for prefix in _block_prefixes(official)) if depth]
    patch_sizes = [coarsest]
    for prefix in _numbered(official, "upsampler"):
        expanded, features = _shape(official, f"{prefix}.proj.weight", dimensions=2)
        patch_sizes.append(patch_sizes[-1] // math.isqrt(expanded // features))
    if len(depths) != len(patch_sizes):
        raise _unknown(f"{len(depths)} groups of blocks but {len(patch_sizes)} patch sizes", "one of each per stage")
    if out_features != patch_sizes[-1] ** 2 * channels:
        expected = f"{patch_sizes[-1]}² · {channels} = {patch_sizes[-1] ** 2 * channels}"
        raise _unknown(f"the output layer has {out_features} features", expected)
    shared = "time_modulation.1.weight" in official
    tokens = _depth(official, "blocks") == 0 or shared
    grid = math.isqrt(official["pos_embed"].shape[-2]) if "pos_embed" in official else None
    if grid is None:
        raise _unknown("there is no position table", "a tensor pos_embed, from which the size of the latents is read")
    position_patch = patch_sizes[0] if _numbered(official, "upsampler_lvl") else patch_sizes[-1]
    hidden, _ = _shape(official, f"{_block_prefixes(official)[0]}.0.mlp.fc1.weight", dimensions=2)
    heads = num_heads or HEADS_BY_WIDTH.get(width)
    if heads is None:
        raise UserError(
            f"width {width} is not that of a published model, so the number of heads is unknown",
            code="unknown-num-heads",
            expected=f"width {', '.join(map(str, HEADS_BY_WIDTH))}, or the number of heads",
            remedy="--num-heads N",
        )
    values = dict(
        width=width,
        num_heads=heads,
        stages=tuple(Stage(p, d) for p, d in zip(patch_sizes, depths, strict=True)),
        input_size=grid * position_patch,
        channels=channels,
        num_classes=rows - 1,
        class_tokens=class_features // width if tokens else 0,
        modulation="shared" if shared else "per-block",
        time_embedding="fno" if "t_embedder.fc0.weight" in official else "sinusoid",
        skip=len(patch_sizes) == 1 or bool(_numbered(official, "linear_skip")),
        mlp_ratio=hidden // width,
    )
    return validate(ModelConfig, values, origin="the model these tensors imply")


def _unknown(what: str, expected: str) -> UserError:
    return UserError(what, code="unknown-architecture", expected=expected)


def _shape(official: Mapping[str, Tensor], name: str, *, dimensions: int) -> tuple[int, ...]:
    if name not in official or official[name].ndim != dimensions:
        what = f"has {name} of shape {tuple(official[name].shape)}" if name in official else f"has no tensor {name}"
        first = ", ".join(sorted(official)[:5])
        raise _unknown(f"the checkpoint {what}; it begins with {first}", "x_embedder, y_embedder, final_layer, blocks")
    return tuple(official[name].shape)


def _block_prefixes(official: Mapping[str, Tensor]) -> list[str]:
    dense = ["blocks"] if "blocks.0.attn.qkv.weight" in official else []
    return dense or ["downsample_blocks", *_numbered(official, "upsample_blocks")]


def _numbered(official: Mapping[str, Tensor], part: str) -> list[str]:
    """`part` alone, or `part_lvl1`, `part_lvl2`, …, as the checkpoint has them, in order."""
    stem = part.removesuffix("_lvl")
    found = {m.group(0) for name in official if (m := re.match(rf"{stem}(_lvl\d+)?(?=\.)", name))}
    if part.endswith("_lvl"):
        found.discard(stem)
    return sorted(found, key=lambda name: (len(name), name))


def _depth(official: Mapping[str, Tensor], prefix: str) -> int:
    indices = [int(m.group(1)) for name in official if (m := re.match(rf"{prefix}\.(\d+)\.", name))]
    return max(indices) + 1 if indices else 0


def _our_name(name: str, *, stages: int) -> str | None:
    module, _, leaf = name.rpartition(".")  # leaf: weight, bias, weights_real, weights_imag
    if m := re.fullmatch(r"(blocks|downsample_blocks|upsample_blocks(?:_lvl(\d+))?)\.(\d+)\.(.+)", module):
        group, level, index, part = m.groups()
        stage = 0 if group in ("blocks", "downsample_blocks") else int(level or 1)
        return f"stages.{stage}.blocks.{index}.{BLOCK[part]}.{leaf}" if part in BLOCK and stage < stages else None
    if m := re.fullmatch(r"x_embedder(?:_skip|_lvl(\d+))?\.proj", module):
        stage = 0 if module == "x_embedder.proj" else int(m.group(1) or 1)
        return f"stages.{stage}.patch_embedding.linear.{leaf}"
    if m := re.fullmatch(r"upsampler(?:_lvl(\d+))?\.(proj|refine)", module):
        return f"stages.{int(m.group(1) or 1)}.upsample.{UPSAMPLE[m.group(2)]}.{leaf}"
    if m := re.fullmatch(r"linear_skip(?:_lvl(\d+))?", module):
        return f"stages.{int(m.group(1) or 1)}.skip.{leaf}"
    if m := re.fullmatch(r"t_embedder\.(conv|w)(\d)", module):
        part = {"weights_real": "real", "weights_imag": "imaginary"}.get(leaf, leaf)
        return f"time_embedding.{'spectral' if m.group(1) == 'conv' else 'pointwise'}.{m.group(2)}.{part}"
    whole = {
        "t_embedder.fc0": "time_embedding.lift",
        "t_embedder.fc1": "time_embedding.project",
        "t_embedder.mlp.0": "time_embedding.mlp.0",
        "t_embedder.mlp.2": "time_embedding.mlp.2",
        "y_embedder.embedding_table": "class_embedding.table",
        "time_modulation.1": "modulation.linear",
        "final_layer.adaLN_modulation.1": "head.modulation.linear",
        "final_layer.linear": "head.linear",
    }
    return f"{whole[module]}.{leaf}" if module in whole else None
