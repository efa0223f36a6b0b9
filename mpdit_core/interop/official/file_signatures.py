"""What a file that cannot be imported seems to be, from its first bytes or from the names of its tensors.

To add one: a line in `BYTES` or in `TENSORS`.
"""

from __future__ import annotations

import re
from collections.abc import Collection

# pattern of the first bytes -> what such a file is
BYTES: list[tuple[bytes, str]] = [
    (rb"\s*(<!doctype html|<html|<\?xml)", "a web page, saved under the name of the file (a login or error page?)"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file it points to (`git lfs pull` fetches that)"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"\x93NUMPY", "a NumPy array (.npy)"),
    (rb"GGUF", "a GGUF file of a quantised language model"),
    (rb"\x08[\x01-\x0a][\x12\x3a]", "an ONNX model"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"\x89PNG|\xff\xd8\xff", "a picture"),
    (rb"\s*[{\[]", "JSON text"),
    (rb"Entry not found|Repository not found|Access to model", "an error message of the Hub, saved as a file"),
]

# pattern of the name of a tensor -> what model has such tensors
TENSORS: list[tuple[str, str]] = [
    (r"lora_(up|down|A|B)\b|\.lora\.|lora_unet_|lora_te", "a LoRA, which modifies another model"),
    (r"stages\.0\.(blocks|patch_embedding)\.", "a model of mpdit already: use its folder as it is"),
    (r"(model\.)?diffusion_model\.(input_blocks|middle_block)|^conv_in\.|^input_blocks\.", "a UNet (Stable Diffusion)"),
    (r"^down_blocks\.|^mid_block\.", "a UNet of diffusers"),
    (r"^(encoder|decoder|first_stage_model\.(en|de)coder)\.(down|up|mid|conv_in)", "an image autoencoder (VAE)"),
    (r"(joint|double|single)_(transformer_)?blocks\.", "a text-to-image transformer (SD3 or FLUX)"),
    (r"^transformer_blocks\..*attn1", "a DiT of diffusers; import the file of the official DiT release instead"),
    (r"cross_attn|y_proj", "a text-conditioned transformer (PixArt)"),
    (r"^projectors\.", "a REPA model, whose flow and projectors mpdit does not support"),
    (r"\.(q_norm|w12)\.|\.mlp\.w3\.", "a LightningDiT, whose blocks differ (SwiGLU, RMSNorm, rotary positions)"),
    (r"self_attn\.q_proj|^lm_head|^transformer\.h\.", "a language or text model"),
    (r"^Mixed_[567]|^Conv2d_1a", "an Inception network"),
    (r"^(layer1|conv1)\.", "a ResNet"),
    (r"^(patch_embed|cls_token)", "a vision transformer for classification"),
]


def like_bytes(head: bytes) -> str | None:
    """What a file that begins with `head` is; None where no signature fits."""
    return next((what for pattern, what in BYTES if re.match(pattern, head, re.IGNORECASE)), None)


def like_tensors(names: Collection[str]) -> str | None:
    """What a model with tensors of these names is; None where no signature fits."""
    return next((what for pattern, what in TENSORS if any(re.search(pattern, name) for name in names)), None)
