"""From tensor names and shapes of the official MPDiT, DiT and SiT code to our configuration and state dict.

The official names in `MODULES` are facts, read from such checkpoints. MPDiT has `downsample_blocks`, then
`upsample_blocks`; MPDiT v2 numbers its later stages (`upsample_blocks_lvl2`); a dense DiT has only `blocks`.
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

# pattern of an official module, without `_lvl<stage>` -> our module, with # for the number of the stage
MODULES = {
    r"(?:(?:down|up)sample_)?blocks\.(\d+)\.attn\.qkv":             r"stages.#.blocks.\1.attention.qkv",
    r"(?:(?:down|up)sample_)?blocks\.(\d+)\.attn\.proj":            r"stages.#.blocks.\1.attention.out",
    r"(?:(?:down|up)sample_)?blocks\.(\d+)\.mlp\.fc1":              r"stages.#.blocks.\1.mlp.up",
    r"(?:(?:down|up)sample_)?blocks\.(\d+)\.mlp\.fc2":              r"stages.#.blocks.\1.mlp.down",
    r"(?:(?:down|up)sample_)?blocks\.(\d+)\.adaLN_modulation\.1":   r"stages.#.blocks.\1.modulation.linear",
    r"x_embedder(?:_skip)?\.proj":     r"stages.#.patch_embedding.linear",
    r"upsampler\.proj":                r"stages.#.upsample.expand",
    r"upsampler\.refine":              r"stages.#.upsample.refine",
    r"linear_skip":                    r"stages.#.skip",
    r"t_embedder\.fc0":                r"time_embedding.lift",
    r"t_embedder\.conv(\d)":           r"time_embedding.spectral.\1",
    r"t_embedder\.w(\d)":              r"time_embedding.pointwise.\1",
    r"t_embedder\.fc1":                r"time_embedding.project",
    r"t_embedder\.mlp\.([02])":        r"time_embedding.mlp.\1",
    r"y_embedder\.embedding_table":    r"class_embedding.table",
    r"time_modulation\.1":             r"modulation.linear",
    r"final_layer\.adaLN_modulation\.1": r"head.modulation.linear",
    r"final_layer\.linear":            r"head.linear",
}  # fmt: skip
LATER_STAGE = ("upsample_blocks", "x_embedder_skip", "upsampler", "linear_skip")  # stage 1 where no number is given
PARAMETERS = {"weights_real": "real", "weights_imag": "imaginary"}


def convert_state_dict(
    official: Mapping[str, Tensor], *, num_heads: int | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Our configuration and state dict for an official state dict.

    Args:
        official: tensors by their official names, without the prefixes of wrappers.
        num_heads: needed only where the width is not that of a published model.

    Raises:
        UserError: the tensors are not those of an MPDiT, DiT or SiT model (`unknown-architecture`), or their width is
            not that of a published model and `num_heads` is not given (`unknown-num-heads`).
    """
    config = infer_config(official, num_heads=num_heads)
    converted: dict[str, Tensor] = {}
    names = {
        name: _our_name(name) for name in official if not name.startswith("pos_embed")
    }  # mpdit computes these tables
    unknown = [name for name, ours in names.items() if not ours]
    if unknown:
        more = " …" if len(unknown) > 5 else ""
        raise _unknown(f"unknown tensors: {', '.join(unknown[:5])}{more}", "an MPDiT, DiT or SiT checkpoint")
    for name, ours in names.items():
        tensor = official[name]
        if ours.endswith("patch_embedding.linear.weight"):
            tensor = tensor.flatten(1)  # a convolution of kernel = stride = p as the equal linear map
        elif ".pointwise." in ours and tensor.ndim == 3:
            tensor = tensor.squeeze(-1)  # a 1 × 1 convolution
        converted[ours] = tensor.detach().clone().contiguous()
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
    numbered = any(name.startswith("upsampler_lvl") for name in official)
    position_patch = patch_sizes[0] if numbered else patch_sizes[-1]
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
    return validate(ModelConfig, values, origin="the model that these tensors imply")


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
    found = {m.group(0) for name in official if (m := re.match(rf"{part}(_lvl\d+)?(?=\.)", name))}
    return sorted(found, key=lambda name: (len(name), name))


def _depth(official: Mapping[str, Tensor], prefix: str) -> int:
    indices = [int(m.group(1)) for name in official if (m := re.match(rf"{prefix}\.(\d+)\.", name))]
    return max(indices) + 1 if indices else 0


def _our_name(name: str) -> str:
    """Our name for a tensor; empty where it is unknown."""
    module, _, parameter = name.rpartition(".")
    level = re.search(r"_lvl(\d+)", module)
    stage = int(level[1]) if level else int(module.startswith(LATER_STAGE))
    module = re.sub(r"_lvl\d+", "", module)
    for pattern, ours in MODULES.items():
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(ours)}.{PARAMETERS.get(parameter, parameter)}".replace("#", str(stage))
    return ""
