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
    """Our configuration and state dict for tensors by their official names, without the prefixes of wrappers.

    Raises:
        UserError: the tensors are not those of an MPDiT, DiT or SiT model (`unknown-architecture`), two of them are
            the same one (`ambiguous-weights`), or their width is not that of a published model and `num_heads` is not
            given (`unknown-num-heads`).
    """
    names = {name: _our_name(name) for name in official if not name.startswith("pos_embed")}  # mpdit computes these
    unknown = [name for name, ours in names.items() if ours is None]
    if unknown:
        more = " …" if len(unknown) > 5 else ""
        raise _unknown(f"unknown tensors: {', '.join(unknown[:5])}{more}", "an MPDiT, DiT or SiT checkpoint")
    state = {ours: official[name] for name, ours in names.items() if ours is not None}
    if len(state) < len(names):
        twice = next(ours for ours in state if list(names.values()).count(ours) > 1)
        raise UserError(f"two tensors are what mpdit calls {twice}", code="ambiguous-weights", expected="each once")
    config = _infer_config(official, state, num_heads)
    for name, tensor in state.items():
        if name.endswith("patch_embedding.linear.weight"):
            tensor = tensor.flatten(1)  # a convolution of kernel = stride = p as the equal linear map
        elif ".pointwise." in name and tensor.ndim == 3:
            tensor = tensor.squeeze(-1)  # a 1 × 1 convolution
        state[name] = tensor.detach().clone().contiguous()
    return config, state


def _our_name(name: str) -> str | None:
    """Our name for a tensor; None where it is unknown."""
    module, _, parameter = name.rpartition(".")
    level = re.search(r"_lvl(\d+)", module)
    stage = int(level[1]) if level else int(module.startswith(LATER_STAGE))
    module = re.sub(r"_lvl\d+", "", module)
    for pattern, ours in MODULES.items():
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(ours)}.{PARAMETERS.get(parameter, parameter)}".replace("#", str(stage))
    return None


def _infer_config(official: Mapping[str, Tensor], state: Mapping[str, Tensor], num_heads: int | None) -> ModelConfig:
    """The configuration that names and shapes imply. `state`: the same tensors by our names."""

    def shape(name: str, *, dimensions: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != dimensions:
            found = f"has the shape {tuple(state[name].shape)}" if name in state else "is missing"
            first = ", ".join(sorted(official)[:5])
            raise _unknown(
                f"the tensor that mpdit calls {name} {found}; the checkpoint begins with {first}",
                f"x_embedder, y_embedder, final_layer and blocks; there a tensor of {dimensions} dimensions",
            )
        return tuple(state[name].shape)

    width, channels, coarsest, _ = shape("stages.0.patch_embedding.linear.weight", dimensions=4)
    out_features, _ = shape("head.linear.weight", dimensions=2)
    rows, class_features = shape("class_embedding.table.weight", dimensions=2)
    hidden, _ = shape("stages.0.blocks.0.mlp.up.weight", dimensions=2)
    patch_sizes = [coarsest]
    for name in sorted(name for name in state if name.endswith("upsample.expand.weight")):
        expanded, features = shape(name, dimensions=2)
        patch_sizes.append(patch_sizes[-1] // math.isqrt(expanded // features))
    depths: dict[int, int] = {}
    for name in state:
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
            stage, block = map(int, match.groups())
            depths[stage] = max(depths.get(stage, 0), block + 1)
    if sorted(depths) != list(range(len(patch_sizes))):
        raise _unknown(f"{len(depths)} groups of blocks but {len(patch_sizes)} patch sizes", "one of each per stage")
    if out_features != patch_sizes[-1] ** 2 * channels:
        expected = f"{patch_sizes[-1]}² · {channels} = {patch_sizes[-1] ** 2 * channels}"
        raise _unknown(f"the output layer has {out_features} features", expected)
    if "pos_embed" not in official:
        raise _unknown("there is no position table", "a tensor pos_embed, from which the size of the latents is read")
    grid = math.isqrt(official["pos_embed"].shape[-2])
    is_numbered = any(name.startswith("upsampler_lvl") for name in official)  # then the table is the first stage's
    heads = num_heads or HEADS_BY_WIDTH.get(width)
    if heads is None:
        raise UserError(
            f"width {width} is not that of a published model, so the number of heads is unknown",
            code="unknown-num-heads",
            expected=f"width {', '.join(map(str, HEADS_BY_WIDTH))}, or the number of heads",
            remedy="--num-heads N",
        )
    shared = "modulation.linear.weight" in state
    is_dense = any(name.startswith("blocks.") for name in official)
    values = dict(
        width=width,
        num_heads=heads,
        stages=tuple(Stage(patch_size, depths[stage]) for stage, patch_size in enumerate(patch_sizes)),
        input_size=grid * patch_sizes[0 if is_numbered else -1],
        channels=channels,
        num_classes=rows - 1,
        class_tokens=class_features // width if shared or not is_dense else 0,
        modulation="shared" if shared else "per-block",
        time_embedding="fno" if "time_embedding.lift.weight" in state else "sinusoid",
        skip=len(patch_sizes) == 1 or any(".skip." in name for name in state),
        mlp_ratio=hidden // width,
    )
    return validate(ModelConfig, values, origin="the model that these tensors imply")


def _unknown(what: str, expected: str) -> UserError:
    return UserError(what, code="unknown-architecture", expected=expected)
